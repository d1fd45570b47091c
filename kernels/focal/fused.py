"""Fused focal modulation in Triton: a convolution and its GELU in one pass over the map, the gated sum with `point`.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in float32 in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..depthwise import fused as depthwise
from ..large_kernel.fused_point import differentiate
from ..launch import Plans, on_device, readable
from .fused_plan import BackwardPlan, Call, ForwardPlan
from .saved import Saved

_plans = Plans()


def unsupported(direction: str, projected: Tensor, weights: Sequence[Tensor], *rest: object) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if not weights:
        return "needs at least one level"
    if not projected.numel():
        return f"needs a map with entries, got {list(projected.shape)}"
    reasons = (depthwise.unsupported(direction, projected, weight) for weight in weights)
    return next(filter(None, reasons), None)


def _rows(x: Tensor) -> Tensor:
    """Return a map whose tokens lie at equal distances, with channels in order: `x` itself if it can be."""
    _, height, width, _ = x.shape
    b, y, step, c = x.stride()
    return x if c == 1 and y == width * step and b == height * y else x.contiguous()


def _taps(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return `depthwise.taps` of each level; by one kernel for weights side by side, as `unpack` has them."""
    first, sizes, at = weights[0], [weight[0].numel() for weight in weights], weights[0].data_ptr()
    row = first.stride(0)
    for weight, size in zip(weights, sizes, strict=True):
        beside = weight.data_ptr() == at and weight.stride() == (row, weight.stride(1), weight.shape[3], 1)
        # Kernels are compiled for levels that start at multiples of 16 bytes.
        if not beside or weight.dtype != first.dtype or len(first) % 4:
            return [depthwise.taps(weight) for weight in weights]
        at += size * weight.element_size()
    whole = first.as_strided((len(first), 1, sum(sizes), 1), (row, row, 1, 1))
    return depthwise.taps(whole).split(sizes)


@on_device
def forward(
    projected: Tensor,
    weights: Sequence[Tensor],
    point_weight: Tensor,
    point_bias: Tensor | None,
    normalize: bool,
    keeps: bool,
) -> tuple[Tensor, Saved | None]:
    """Return the output [B, H, W, C] and, with `keeps`, what the backward pass needs."""
    projected, point_weight = _rows(projected), readable(point_weight)
    kernels = tuple(weight.shape[-1] for weight in weights)
    plan = _plans(
        lambda: ForwardPlan(Call(projected, point_weight, kernels, normalize), point_weight, point_bias, keeps),
        ("forward", kernels, normalize, keeps),
        *(projected, point_weight, point_bias),
    )
    return plan(projected, _taps(weights), point_weight, point_bias)


@on_device
def backward(
    dout: Tensor,
    saved: Saved,
    projected: Tensor,
    weights: Sequence[Tensor],
    point_weight: Tensor,
    point_bias: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None]:
    """Return the gradients of projected, weights, point_weight and point_bias, given that of the output."""
    dout, projected, point_weight = _rows(dout), _rows(projected), readable(point_weight)
    kernels = tuple(weight.shape[-1] for weight in weights)
    dprojected = torch.empty(projected.shape, dtype=projected.dtype, device=projected.device)
    query, dquery = (x[..., : dout.shape[-1]] for x in (projected, dprojected))
    _, dmodulator, dpoint, dpoint_bias = differentiate(
        dout, query, saved.modulator, point_weight, point_bias, out=dquery
    )
    plan = _plans(
        lambda: BackwardPlan(Call(projected, point_weight, kernels, normalize)),
        ("backward", kernels, normalize),
        *(projected, point_weight, *weights),
    )
    dweights = plan(dmodulator, saved, projected, [weight.dtype for weight in weights], _taps(weights), dprojected)
    return dprojected, dweights, dpoint, dpoint_bias
