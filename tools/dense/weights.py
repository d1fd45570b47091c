"""Weights for a detector or segmentor: our own files, and those of the official repositories."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from ..engine.distributed import in_first_process
from ..engine.modeling import load_weights
from .importer import import_checkpoint


def load(model: nn.Module, file: Path) -> None:
    """Load a file of this model's own keys, as training saves it, or an official one; says how the latter fits."""
    if file.suffix == ".safetensors":
        load_weights(model, file)
        return
    report = import_checkpoint(model, file)
    if in_first_process():
        print(report, file=sys.stderr)
