"""Weights for a detector or segmentor: our own files."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..engine.modeling import load_weights


def load(model: nn.Module, file: Path) -> None:
    """Load a file of this model's own keys, as training saves it."""
    load_weights(model, file)
