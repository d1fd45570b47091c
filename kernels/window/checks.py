"""Argument checks of window attention: one error that names the argument, its value and what would be valid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import per_axis
from ..neighborhood.checks import check_tensors

__all__ = ["check_bias", "check_mask", "check_tensors", "check_window"]


def check_window(shape: Sequence[int], window: int | Sequence[int]) -> tuple[int, ...]:
    """Check the window against a map of this shape and return its extent along each axis."""
    window = per_axis("window", window, len(shape), int)
    for axis, (length, extent) in enumerate(zip(shape, window, strict=True)):
        if extent < 1:
            raise ValueError(f"window={extent} on axis {axis}; valid: 1 or more")
        if length % extent:
            raise ValueError(
                f"window={extent} on axis {axis} does not divide the map's {length} tokens; valid: a divisor of "
                f"{length}, or a map padded to {length + -length % extent}"
            )
    return window


def check_bias(bias: Tensor, q: Tensor, window: Sequence[int]) -> None:
    """Check the bias against q and the window."""
    tokens = math.prod(window)
    _check_table("bias", bias, "[heads, N, N]", [q.shape[-2], tokens, tokens], q, (q.dtype, torch.float32))


def check_mask(mask: Tensor, q: Tensor, window: Sequence[int]) -> None:
    """Check the mask against q and the window."""
    tokens = math.prod(window)
    shape = [math.prod(q.shape[1:-2]) // tokens, tokens, tokens]
    _check_table("mask", mask, "[windows, N, N]", shape, q, (torch.bool, q.dtype, torch.float32))
    if mask.requires_grad:
        raise ValueError("mask requires a gradient; valid: a constant (what is learned belongs into the bias)")


def _check_table(name: str, table: Tensor, axes: str, shape: list[int], q: Tensor, dtypes: Sequence) -> None:
    if list(table.shape) != shape:
        raise ValueError(f"{name} has shape {list(table.shape)}; valid: {axes} = {shape}")
    if table.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {table.dtype}; valid: {', '.join(map(str, dict.fromkeys(dtypes)))}")
    if table.device != q.device:
        raise ValueError(f"{name} is on {table.device}; valid: the device of q, {q.device}")
