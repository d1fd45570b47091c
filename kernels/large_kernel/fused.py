"""Fused large kernel attention in Triton: both depthwise convolutions, then the pointwise one with the gate.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in float32 in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

from torch import Tensor

from ..depthwise import fused as depthwise
from ..launch import on_device, readable
from .fused_point import differentiate, project
from .parameters import Parameters

UNDILATED = (1, 1)


def unsupported(direction: str, x: Tensor, parameters: Parameters, dilation: Sequence[int]) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    reasons = (depthwise.unsupported(direction, x, w) for w in (parameters.local_weight, parameters.spatial_weight))
    return next(filter(None, reasons), None)


@on_device
def forward(x: Tensor, parameters: Parameters, dilation: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output [B, H, W, C] with what the backward pass needs, the local and the spatial context."""
    x = readable(x)
    local = depthwise.convolve(x, parameters.local_weight, parameters.local_bias, UNDILATED)
    spatial = depthwise.convolve(local, parameters.spatial_weight, parameters.spatial_bias, dilation)
    out, _ = project(spatial, parameters.point_weight.T, x, parameters.point_bias)
    return out, local, spatial


@on_device
def backward(
    dout: Tensor, x: Tensor, local: Tensor, spatial: Tensor, parameters: Parameters, dilation: Sequence[int]
) -> tuple[Tensor, Parameters]:
    """Return the gradients of x and of the parameters, given that of the output."""
    dout, x, local, spatial = (readable(value) for value in (dout, x, local, spatial))
    point, point_bias = parameters.point_weight, parameters.point_bias
    through, dspatial, dpoint, dpoint_bias = differentiate(dout, x, spatial, point, point_bias)
    dlocal = depthwise.convolve(dspatial, parameters.spatial_weight, None, dilation, flip=True)
    dx = depthwise.convolve(dlocal, parameters.local_weight, None, UNDILATED, more=through, flip=True)
    dspatial_weight, dspatial_bias = depthwise.correlate(
        local, dspatial, parameters.spatial_weight, parameters.spatial_bias, dilation
    )
    dlocal_weight, dlocal_bias = depthwise.correlate(
        x, dlocal, parameters.local_weight, parameters.local_bias, UNDILATED
    )
    return dx, Parameters(dlocal_weight, dspatial_weight, dpoint, dlocal_bias, dspatial_bias, dpoint_bias)
