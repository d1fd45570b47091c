"""Fused focal modulation in Triton: a convolution, its GELU and what they are summed for in one pass over the map.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in float32 in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..depthwise import fused as depthwise
from ..launch import Plans, on_device, readable
from .fused_plan import BackwardPlan, Call, ForwardPlan

_plans = Plans()


def unsupported(
    direction: str, context: Tensor, gates: Tensor, weights: Sequence[Tensor], normalize: bool
) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if not weights:
        return "needs at least one level"
    if not context.numel():
        return f"needs a map with entries, got {list(context.shape)}"
    reasons = (depthwise.unsupported(direction, context, weight) for weight in weights)
    return next(filter(None, reasons), None)


def _rows(x: Tensor) -> Tensor:
    """Return a map whose tokens lie at equal distances, with channels in order: `x` itself if it can be."""
    _, height, width, _ = x.shape
    b, y, step, c = x.stride()
    return x if c == 1 and y == width * step and b == height * y else x.contiguous()


@on_device
def forward(context: Tensor, gates: Tensor, weights: Sequence[Tensor], normalize: bool) -> Tensor:
    """Return the modulator [B, H, W, C]."""
    context, gates = readable(context), _rows(gates)
    kernels = tuple(weight.shape[-1] for weight in weights)
    out = torch.empty(context.shape, dtype=context.dtype, device=context.device)
    plan = _plans(
        lambda: ForwardPlan(Call(context, gates, kernels, normalize)), ("forward", kernels, normalize), context, gates
    )
    plan(context, gates, [depthwise.taps(weight) for weight in weights], out)
    return out


@on_device
def backward(
    dout: Tensor, context: Tensor, gates: Tensor, weights: Sequence[Tensor], normalize: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the gradients of context, gates and weights, given that of the output; contexts are computed again."""
    dout, context, gates = _rows(dout), readable(context), _rows(gates)
    kernels = tuple(weight.shape[-1] for weight in weights)
    dcontext, dgates = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (context, gates))
    plan = _plans(
        lambda: BackwardPlan(Call(context, gates, kernels, normalize, dout), dout),
        ("backward", kernels, normalize),
        *(context, gates, dout),
    )
    dweights = plan(dout, context, gates, [depthwise.taps(weight) for weight in weights], dcontext, dgates)
    return dcontext, dgates, [d.to(weight.dtype) for d, weight in zip(dweights, weights, strict=True)]
