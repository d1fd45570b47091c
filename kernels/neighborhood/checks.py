"""Argument checks of neighborhood attention: one error that names the argument, its value and what would be valid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import FLOATS, per_axis


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Check shapes, dtypes and devices of q, k, v and return the number of spatial axes."""
    rank = q.dim() - 3
    if rank not in (1, 2, 3):
        raise ValueError(f"q has shape {list(q.shape)}; valid: [B, *spatial, heads, D] with 1, 2 or 3 spatial axes")
    if k.shape != q.shape:
        raise ValueError(f"k has shape {list(k.shape)}; valid: that of q, {list(q.shape)}")
    if v.dim() != q.dim() or v.shape[:-1] != q.shape[:-1]:
        raise ValueError(
            f"v has shape {list(v.shape)}; valid: that of q up to the last axis, {list(q.shape[:-1])} + [D]"
        )
    if q.dtype not in FLOATS:
        raise ValueError(f"q has dtype {q.dtype}; valid: float16, bfloat16, float32, float64")
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype}; valid: that of q, {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}; valid: the device of q, {q.device}")
    for name, size in (("heads", q.shape[-2]), ("D", q.shape[-1]), ("the D of v", v.shape[-1])):
        if size < 1:
            raise ValueError(f"{name} is {size} in q {list(q.shape)} and v {list(v.shape)}; valid: at least 1")
    return rank


def check_neighborhood(shape: Sequence[int], window, stride, dilation, causal) -> tuple[tuple, tuple, tuple, tuple]:
    """Check the neighborhood against a map of this shape and return its four settings, an entry for each axis."""
    rank = len(shape)
    window, stride, dilation = (
        per_axis(name, value, rank, int)
        for name, value in (("window", window), ("stride", stride), ("dilation", dilation))
    )
    causal = per_axis("causal", causal, rank, bool)
    for axis in range(rank):
        length, w, s, d = shape[axis], window[axis], stride[axis], dilation[axis]
        if w < 1:
            raise ValueError(f"window={w} on axis {axis}; valid: 1 or more")
        if d < 1:
            raise ValueError(f"dilation={d} on axis {axis}; valid: 1 or more")
        if not 1 <= s <= w:
            raise ValueError(f"stride={s} on axis {axis}; valid: 1 to the window, {w}")
        if w * d > length:
            raise ValueError(
                f"window={w} times dilation={d} is {w * d} on axis {axis}, more than the map's {length} tokens; valid: "
                f"a window of at most {length // d} with this dilation, or a map padded to {w * d}"
            )
    return window, stride, dilation, causal


def check_bias(bias: Tensor, q: Tensor, window: Sequence[int]) -> None:
    """Check the relative position bias against q and the window."""
    even = [w for w in window if w % 2 == 0]
    if even:
        raise ValueError(f"window={even[0]} is even; valid with a relative position bias: odd windows")
    valid = [q.shape[-2], *(2 * w - 1 for w in window)]
    if list(bias.shape) != valid:
        raise ValueError(f"bias has shape {list(bias.shape)}; valid: [heads, 2 * window - 1 for each axis] = {valid}")
    if bias.dtype not in (q.dtype, torch.float32):
        raise ValueError(f"bias has dtype {bias.dtype}; valid: that of q, {q.dtype}, or torch.float32")
    if bias.device != q.device:
        raise ValueError(f"bias is on {bias.device}; valid: the device of q, {q.device}")
