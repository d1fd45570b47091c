"""Neighborhood attention by NATTEN, where its compiled library is installed: an optional backend, forward only.

It has no relative position bias. Without one it took longer than the fused kernels in every case measured (NOTES.md),
so it comes after them and serves where Triton is missing. Gradients are left to the other backends, which need of the
forward only its output and log-sum-exp.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from .geometry import Geometry


@cache
def _missing() -> str | None:
    """What there lacks of NATTEN; asked only for calls it could serve, since importing it takes a while."""
    if find_spec("natten") is None:
        return "natten is not installed"
    return None if import_module("natten").HAS_LIBNATTEN else "natten is installed without its compiled library"


def unsupported(direction: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if direction != "forward":
        return "computes no gradients"
    if q.device.type != "cuda":
        return f"needs CUDA tensors, got {q.device.type}"
    if bias is not None:
        return "NATTEN has no relative position bias"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"needs float16, bfloat16 or float32, got {q.dtype}"
    if v.shape[-1] != q.shape[-1] or q.shape[-1] % 8:
        return f"needs one head dimension for q and v, a multiple of 8, got {q.shape[-1]} and {v.shape[-1]}"
    if not q.numel():
        return "needs at least one token"
    return _missing()


def forward(q: Tensor, k: Tensor, v: Tensor, bias: None, geometry: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output [B, *spatial, heads, D] and the log-sum-exp [B, *spatial, heads] in float32."""
    stride, dilation, causal = zip(*((axis.stride, axis.dilation, axis.causal) for axis in geometry.axes), strict=True)
    out, lse = getattr(import_module("natten"), f"na{len(geometry.axes)}d")(
        *(q, k, v, geometry.window),
        stride=stride,
        dilation=dilation,
        is_causal=causal,
        scale=scale,
        return_lse=True,
    )
    return out.contiguous(), lse.float().contiguous()
