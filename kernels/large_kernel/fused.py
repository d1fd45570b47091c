"""Fused large kernel attention in Triton: both depthwise convolutions, then the pointwise one with the gate.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in float32 in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..depthwise import fused as depthwise
from ..launch import Plans, on_device, readable
from .fused_plan import DifferentiateWeight, Project
from .parameters import Parameters

UNDILATED = (1, 1)
_plans = Plans()


def unsupported(direction: str, x: Tensor, parameters: Parameters, dilation: Sequence[int]) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    reasons = (depthwise.unsupported(direction, x, w) for w in (parameters.local_weight, parameters.spatial_weight))
    return next(filter(None, reasons), None)


def _project(
    a: Tensor, weight: Tensor, times: Tensor | None, bias: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return (a * times) weight + bias, all times `gate`, of maps [B, H, W, C]; and a * times, as rows."""
    rows, times, gate = (None if x is None else x.flatten(0, 2) for x in (a, times, gate))
    out = torch.empty(rows.shape, dtype=a.dtype, device=a.device)
    product = None if times is None else torch.empty_like(out)
    if out.numel():
        plan = _plans(
            lambda: Project(rows, times, weight, bias is not None, gate, out), (), *(rows, times, weight, bias, gate)
        )
        plan(rows, times, weight, bias, gate, out, product)
    return out.view(a.shape), product


@on_device
def forward(x: Tensor, parameters: Parameters, dilation: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output [B, H, W, C] with what the backward pass needs, the local and the spatial context."""
    x = readable(x)
    local = depthwise.convolve(x, parameters.local_weight, parameters.local_bias, UNDILATED)
    spatial = depthwise.convolve(local, parameters.spatial_weight, parameters.spatial_bias, dilation)
    point = parameters.point_weight
    out, _ = _project(spatial, point.T, None, parameters.point_bias, x)
    return out, local, spatial


@on_device
def backward(
    dout: Tensor, x: Tensor, local: Tensor, spatial: Tensor, parameters: Parameters, dilation: Sequence[int]
) -> tuple[Tensor, Parameters]:
    """Return the gradients of x and of the parameters, given that of the output."""
    dout, x, local, spatial = (readable(value) for value in (dout, x, local, spatial))
    point, point_bias = parameters.point_weight, parameters.point_bias
    through, _ = _project(spatial, point.T, None, point_bias, dout)
    dspatial, dgate = _project(dout, point, x, None, None)
    dlocal = depthwise.convolve(dspatial, parameters.spatial_weight, None, dilation, flip=True)
    dx = depthwise.convolve(dlocal, parameters.local_weight, None, UNDILATED, more=through, flip=True)
    dspatial_weight, dspatial_bias = depthwise.correlate(
        local, dspatial, parameters.spatial_weight, parameters.spatial_bias, dilation
    )
    dlocal_weight, dlocal_bias = depthwise.correlate(
        x, dlocal, parameters.local_weight, parameters.local_bias, UNDILATED
    )
    if x.numel():
        tensors = (dgate, spatial.flatten(0, 2))
        plan = _plans(lambda: DifferentiateWeight(*tensors), ("weight",), *tensors, point, point_bias)
        dpoint, dpoint_bias = plan(*tensors, point.dtype, point.dtype if point_bias is None else point_bias.dtype)
    else:
        dpoint, dpoint_bias = torch.zeros_like(point), dout.new_zeros(point.shape[0])
    gradients = Parameters(
        dlocal_weight,
        dspatial_weight,
        dpoint,
        dlocal_bias,
        dspatial_bias,
        None if point_bias is None else dpoint_bias.to(point_bias.dtype),
    )
    return dx, gradients
