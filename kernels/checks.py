"""Argument checks that operators share: one error that names the argument, its value and what would be valid."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def per_axis(name: str, value, rank: int, kind: type) -> tuple:
    """Return `value` as one entry for each of `rank` axes, all of type `kind`."""
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(entries) != rank:
        raise ValueError(f"{name}={value!r} has {len(entries)} entries; valid: one {kind.__name__} or {rank} of them")
    # torch.export traces a size that may change as a number of its own type.
    kinds = (int, torch.SymInt) if kind is int else kind
    for entry in entries:
        if not isinstance(entry, kinds) or (kind is int and isinstance(entry, bool)):
            raise ValueError(f"{name}={value!r} must be of type {kind.__name__}, got {type(entry).__name__}")
    return entries


def check_map(name: str, x: Tensor) -> None:
    """Check that `x` is a floating channels-last map [B, H, W, C]."""
    if x.dim() != 4:
        raise ValueError(f"{name} has shape {list(x.shape)}; valid: [B, H, W, C]")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"{name} has shape {list(x.shape)}; valid: H, W and C of at least 1")
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} has dtype {x.dtype}; valid: float16, bfloat16, float32, float64")


def check_parameter(name: str, parameter: Tensor, shape: Sequence[int], x: Tensor, of: str = "x") -> None:
    """Check a weight, bias or table: its shape, a dtype that is float32 or that of `x`, and the device of `x`.

    Args:
        of: the name of the argument `x`.
    """
    if list(parameter.shape) != list(shape):
        raise ValueError(f"{name} has shape {list(parameter.shape)}; valid: {list(shape)}")
    if parameter.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"{name} has dtype {parameter.dtype}; valid: that of {of}, {x.dtype}, or torch.float32")
    if parameter.device != x.device:
        raise ValueError(f"{name} is on {parameter.device}; valid: the device of {of}, {x.device}")


def check_tokens(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check queries [B, *spatial, heads, D], keys [B, *spatial, heads, D] and values [B, *spatial, heads, E].

    Keys and values lie on one map, queries may lie on another.
    """
    if q.dim() < 4:
        raise ValueError(f"q has shape {list(q.shape)}; valid: [B, *spatial, heads, D] with at least one spatial axis")
    if q.dtype not in FLOATS:
        raise ValueError(f"q has dtype {q.dtype}; valid: float16, bfloat16, float32, float64")
    if k.dim() < 4 or k.shape[0] != q.shape[0] or k.shape[-2:] != q.shape[-2:]:
        raise ValueError(
            f"k has shape {list(k.shape)}; valid: [{q.shape[0]}, *spatial, {q.shape[-2]}, {q.shape[-1]}], the batch, "
            "heads and D of q"
        )
    if v.dim() != k.dim() or v.shape[:-1] != k.shape[:-1]:
        raise ValueError(
            f"v has shape {list(v.shape)}; valid: that of k up to the last axis, {list(k.shape[:-1])} + [D]"
        )
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype}; valid: that of q, {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}; valid: the device of q, {q.device}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if min(x.shape[1:]) < 1:
            raise ValueError(f"{name} has shape {list(x.shape)}; valid: tokens, heads and D of at least 1")
