"""Fused large kernel attention in Triton: both depthwise convolutions, then the pointwise one with the gate.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in float32 in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

from torch import Tensor

from ..depthwise import fused as depthwise
from ..launch import on_device, readable
from .fused_activation import activate
from .fused_point import differentiate, project
from .kept import Kept
from .parameters import Parameters

UNDILATED = (1, 1)


def unsupported(direction: str, x: Tensor, parameters: Parameters, *rest: object) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    reasons = (depthwise.unsupported(direction, x, w) for w in (parameters.local_weight, parameters.spatial_weight))
    return next(filter(None, reasons), None)


@on_device
def forward(
    x: Tensor, parameters: Parameters, dilation: Sequence[int], activation: str | None = None
) -> tuple[Tensor, Kept]:
    """Return the output [B, H, W, C] with what is kept for the backward pass."""
    active = activate(x) if activation else None
    x = readable(x) if active is None else active
    taps = depthwise.taps_of_both(parameters.local_weight, parameters.spatial_weight)
    local = depthwise.convolve(x, parameters.local_weight, parameters.local_bias, UNDILATED, arranged=taps[0])
    spatial = depthwise.convolve(local, parameters.spatial_weight, parameters.spatial_bias, dilation, arranged=taps[1])
    out, _ = project(spatial, parameters.point_weight.T, x, parameters.point_bias)
    return out, Kept(local, spatial, active, *(flat.view(-1) for flat in taps))


@on_device
def backward(
    dout: Tensor,
    x: Tensor,
    kept: Kept,
    parameters: Parameters,
    dilation: Sequence[int],
) -> tuple[Tensor, Parameters]:
    """Return the gradients of x and of the parameters, given that of the output and what `forward` kept."""
    local, spatial, active, local_taps, spatial_taps = kept
    dout, x, local, spatial = (readable(value) for value in (dout, x, local, spatial))
    inner, x = (None, x) if active is None else (x, active)
    point, point_bias = parameters.point_weight, parameters.point_bias
    through, dspatial, dpoint, dpoint_bias = differentiate(dout, x, spatial, point, point_bias)
    dlocal = depthwise.convolve(dspatial, parameters.spatial_weight, None, dilation, flip=True, arranged=spatial_taps)
    dx = depthwise.convolve(
        dlocal, parameters.local_weight, None, UNDILATED, through, flip=True, inner=inner, arranged=local_taps
    )
    dspatial_weight, dspatial_bias = depthwise.correlate(
        local, dspatial, parameters.spatial_weight, parameters.spatial_bias, dilation
    )
    dlocal_weight, dlocal_bias = depthwise.correlate(
        x, dlocal, parameters.local_weight, parameters.local_bias, UNDILATED
    )
    return dx, Parameters(dlocal_weight, dspatial_weight, dpoint, dlocal_bias, dspatial_bias, dpoint_bias)
