"""Weights that depend only on a tensor's name and shape, and a fixed image: the rules behind the goldens."""

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDENS = Path(__file__).parent / "goldens"


def load_golden(family: str, name: str) -> dict[str, Any]:
    """Return tests/goldens/<family>/<name>.json."""
    return json.loads((GOLDENS / family / f"{name}.json").read_text())


def named_tensor(key: str, shape: list[int]) -> Tensor:
    """Return the tensor called `key`: normal, seeded by the name, scaled by what the name and the rank say it is."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    *_, leaf = key.split(".")
    if leaf == "running_var":
        return 1 + 0.1 * x.abs()
    if leaf != "running_mean" and x.ndim > 1:
        return x / math.sqrt(x[0].numel())
    centre = {"weight": 1.0, "": 1.0}.get(leaf, 0.5 if leaf.startswith(("gamma", "layer_scale")) else 0.0)
    return centre + 0.1 * x


def official_state(golden: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state dict the official model of a golden had.

    Its `buffers`, indices and counters, are zeros; what `post_fill` names is scaled, so that deep models stay finite.
    """
    state = {
        key: torch.zeros(shape, dtype=torch.long) if key in golden["buffers"] else named_tensor(key, shape)
        for key, shape in golden["state"].items()
    }
    if scaled := golden.get("post_fill"):
        state |= {key: x * scaled["multiply"] for key, x in state.items() if re.search(scaled["regex"], key)}
    return state


def stressed_state(golden: dict[str, Any]) -> dict[str, Tensor]:
    """Return that state dict with what decides on positions enlarged: times a gain, and not scaled by its rank."""
    state = official_state(golden)
    for pattern, gain in golden["stress"]["gains"]:
        for key, value in state.items():
            if re.search(pattern, key):
                state[key] = value * gain * math.sqrt(value[0].numel())
    return state


def golden_image(size: int | list[int], batch: int) -> Tensor:
    """Return the image every golden was measured on, [batch, 3, H, W]."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(20261122))


def relative_error(value: Tensor, reference: list[float] | float | Tensor) -> float:
    """Return the norm of the difference over the norm of the reference."""
    reference = torch.as_tensor(reference, dtype=torch.float64)
    return ((value.double() - reference).norm() / reference.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()
