"""Fused window attention in Triton: windows are read from the map in place and no attention matrix reaches memory.

Serves float16, bfloat16 and float32 tensors on CUDA devices, head dimensions up to 256, windows of any size. Under
TRITON_INTERPRET=1 also CPU tensors, slowly. Sums are taken in one order, so results repeat to the bit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..launch import Plans, on_device, readable, why_not
from .fused_plan import BackwardPlan, Call, ForwardPlan

LARGEST_WIDTH = 256
_plans = Plans()


def unsupported(
    direction: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, window: Sequence[int]
) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if max(q.shape[-1], v.shape[-1]) > LARGEST_WIDTH:
        return f"needs head dimensions of at most {LARGEST_WIDTH}, got {q.shape[-1]} and {v.shape[-1]}"
    if math.prod(window) >= 1 << 14:
        return f"needs windows of fewer than 2^14 tokens, got {math.prod(window)}"
    return why_not(q)


def _tables(bias: Tensor | None, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return both in order, booleans as bytes."""
    mask = None if mask is None else mask.contiguous()
    mask = mask.view(torch.uint8) if mask is not None and mask.dtype == torch.bool else mask
    return None if bias is None else bias.contiguous(), mask


@on_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, window: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output [B, *spatial, heads, D] and the log-sum-exp [B, *spatial, heads] in float32."""
    q, k, v = readable(q), readable(k), readable(v)
    bias, mask = _tables(bias, mask)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if lse.numel():
        tensors = (q, k, v, bias, mask, out, lse)
        plan = _plans(lambda: ForwardPlan(Call(*tensors[:5], window, scale), out, lse), (window, scale), *tensors)
        plan(*tensors)
    return out, lse


@on_device
def backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and bias, given those of the output and of the log-sum-exp."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if not lse.numel():
        return dq, dk, dv, None if bias is None else torch.zeros_like(bias)
    q, k, v, dout = (readable(x) for x in (q, k, v, dout))
    out, lse, dlse = out.contiguous(), lse.contiguous(), dlse.contiguous()
    dtype = None if bias is None else bias.dtype
    bias, mask = _tables(bias, mask)
    tensors = (q, k, v, bias, mask, out, lse, dout, dlse, dq, dk, dv)
    plan = _plans(
        lambda: BackwardPlan(Call(*tensors[:5], window, scale), *tensors[5:]), (window, scale, "backward"), *tensors
    )
    dbias = plan(*tensors)
    return dq, dk, dv, None if dbias is None else dbias.to(dtype)
