"""Fused neighborhood attention in Triton: no attention matrix and no gathered keys in memory, any strides, any map.

Serves float16, bfloat16 and float32 tensors on CUDA devices, head dimensions 8 to 256 in steps of 8. Under
TRITON_INTERPRET=1 also CPU tensors, slowly.
"""

import math

import torch
from torch import Tensor

from ..launch import Plans, on_device, readable, why_not
from .fused_plan import BackwardPlan, Call, ForwardPlan
from .geometry import Geometry

_plans = Plans()


def unsupported(direction: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if reason := why_not(q):
        return reason
    if v.shape[-1] != q.shape[-1]:
        return f"needs v with the head dimension of q, {q.shape[-1]}, got {v.shape[-1]}"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"needs a head dimension of 8 to 256 in steps of 8, got {q.shape[-1]}"
    if math.prod(2 * axis.window - 1 for axis in geometry.axes) >= 1 << 20:
        return "needs windows of fewer than 2^20 relative positions"
    return None


@on_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output [B, *spatial, heads, D] and the log-sum-exp [B, *spatial, heads] in float32."""
    q, k, v = readable(q), readable(k), readable(v)
    bias = None if bias is None else bias.contiguous()
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if out.numel():
        plan = _plans(
            lambda: ForwardPlan(Call(q, k, v, bias, geometry, scale, out), out, lse),
            ("forward", geometry, scale),
            *(q, k, v, bias),
        )
        plan(q, k, v, bias, out, lse)
    return out, lse


def backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    geometry: Geometry,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and bias, given those of the output and of the log-sum-exp."""
    gradients = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return *gradients, backward_into(gradients, dout, dlse, q, k, v, bias, out, lse, geometry, scale)


@on_device
def backward_into(
    gradients: tuple[Tensor, Tensor, Tensor],
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    geometry: Geometry,
    scale: float,
) -> Tensor | None:
    """Write the gradients of q, k, v, all of the same strides, and return that of the bias."""
    if not q.numel():
        return None if bias is None else torch.zeros_like(bias)
    q, k, v, dout = (readable(x) for x in (q, k, v, dout))
    out, lse, dlse = out.contiguous(), lse.contiguous(), dlse.contiguous()
    bias = None if bias is None else bias.contiguous()
    dbias = None if bias is None else torch.empty_like(bias)
    dq = gradients[0]
    plan = _plans(
        lambda: BackwardPlan(Call(q, k, v, bias, geometry, scale, dout, out, dq), dout, out, lse, dq),
        ("backward", geometry, scale),
        *(q, k, v, bias, dout, out, lse, dlse, dq),
    )
    plan(q, k, v, bias, out, lse, dout, dlse, *gradients, dbias)
    return dbias
