"""Large kernel attention as its definition reads, from the definition of depthwise convolution.

Runs on any device and dtype, and accumulates in at least float32. This file is the specification that the other
backends are tested against.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depthwise import reference as depthwise_reference
from ..depthwise.reference import unsupported, widen
from .kept import Kept
from .parameters import Parameters

__all__ = ["backward", "forward", "unsupported"]

UNDILATED = (1, 1)


def _project(spatial: Tensor, parameters: Parameters) -> Tensor:
    """Return the gate, the pointwise convolution of the spatial context."""
    bias = parameters.point_bias
    return F.linear(
        spatial, parameters.point_weight.to(spatial.dtype), None if bias is None else bias.to(spatial.dtype)
    )


def forward(
    x: Tensor,
    parameters: Parameters,
    dilation: Sequence[int],
    activation: str | None = None,
    depthwise: ModuleType = depthwise_reference,
) -> tuple[Tensor, Kept]:
    """Return the output [B, H, W, C] with what is kept for the backward pass.

    Args:
        depthwise: the backend of depthwise convolution to use.
    """
    wide = F.gelu(widen(x)) if activation else widen(x)
    local = depthwise.forward(wide, parameters.local_weight, parameters.local_bias, UNDILATED)
    spatial = depthwise.forward(local, parameters.spatial_weight, parameters.spatial_bias, dilation)
    out = wide * _project(spatial, parameters)
    out, local, spatial = (value.to(x.dtype).contiguous() for value in (out, local, spatial))
    active = wide.to(x.dtype).contiguous() if activation else None
    return out, Kept(local, spatial, active, *parameters.taps())


def backward(
    dout: Tensor,
    x: Tensor,
    kept: Kept,
    parameters: Parameters,
    dilation: Sequence[int],
    depthwise: ModuleType = depthwise_reference,
) -> tuple[Tensor, Parameters]:
    """Return the gradients of x and of the parameters, given that of the output and what `forward` kept."""
    local, spatial, dout = (widen(value) for value in (kept.local, kept.spatial, dout))
    wide = widen(x if kept.active is None else kept.active)
    dgate = dout * wide
    dpoint_weight = dgate.flatten(0, 2).T @ spatial.flatten(0, 2)
    dspatial = dgate @ parameters.point_weight.to(dgate.dtype)
    dlocal, dspatial_weight, dspatial_bias = depthwise.backward(
        dspatial, local, parameters.spatial_weight, parameters.spatial_bias, dilation
    )
    dx, dlocal_weight, dlocal_bias = depthwise.backward(
        dlocal, wide, parameters.local_weight, parameters.local_bias, UNDILATED
    )
    dx = dx.addcmul_(dout, _project(spatial, parameters))
    if kept.active is not None:
        dx = torch.ops.aten.gelu_backward(dx, widen(x))
    point_bias = parameters.point_bias
    gradients = Parameters(
        dlocal_weight,
        dspatial_weight,
        dpoint_weight.to(parameters.point_weight.dtype),
        dlocal_bias,
        dspatial_bias,
        None if point_bias is None else dgate.sum((0, 1, 2)).to(point_bias.dtype),
    )
    return dx.to(x.dtype), gradients
