"""Large kernel attention: a map gated by its own wide surroundings, which three convolutions gather."""

from collections.abc import Sequence

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from ..checks import check_map, check_parameter
from ..depthwise.checks import check_activation, check_dilation, check_kernel
from .operator import OPERATOR, call
from .parameters import Parameters

__all__ = ["large_kernel_attention"]


def large_kernel_attention(
    x: Tensor,
    local_weight: Tensor,
    spatial_weight: Tensor,
    point_weight: Tensor,
    local_bias: Tensor | None = None,
    spatial_bias: Tensor | None = None,
    point_bias: Tensor | None = None,
    dilation: int | Sequence[int] = 3,
    activation: str | None = None,
) -> Tensor:
    """Multiply a channels-last map by a large-kernel convolution of it: u * point(spatial(local(u))).

    `local` is a depthwise convolution, `spatial` a dilated depthwise one, `point` mixes channels; all are zero-padded
    to keep the map. 5 x 5, then 7 x 7 with dilation 3, see 23 x 23 tokens.

    Args:
        x: [B, H, W, C]; under autocast it is cast to the autocast dtype.
        local_weight, spatial_weight: [C, 1, kh, kw] as torch.nn.Conv2d has them, of odd extents.
        point_weight: [C, C] as torch.nn.Linear has it.
        local_bias, spatial_bias, point_bias: [C] each. All parameters are in the dtype of x or float32.
        dilation: of `spatial`; one value, or one for rows and one for columns.
        activation: "gelu" makes u of x by GELU with the error function; by default u is x.

    Returns:
        [B, H, W, C] in the dtype of x, differentiable once. Sums are taken in float32 (float64 for float64 inputs).

    Raises:
        ValueError: an argument has a shape, dtype, device or value that is not valid.

    Source: Guo et al., arXiv 2202.09741.
    """
    (x,) = cast(x)
    parameters = Parameters(local_weight, spatial_weight, point_weight, local_bias, spatial_bias, point_bias)
    out, *_ = call(x, *parameters, _check(x, parameters, dilation, activation), activation, dispatch.requested())
    return out


def _check(x: Tensor, parameters: Parameters, dilation: int | Sequence[int], activation: str | None) -> tuple[int, int]:
    check_map("x", x)
    channels = x.shape[-1]
    check_kernel("local_", parameters.local_weight, parameters.local_bias, x)
    check_kernel("spatial_", parameters.spatial_weight, parameters.spatial_bias, x)
    check_parameter("point_weight", parameters.point_weight, (channels, channels), x)
    if parameters.point_bias is not None:
        check_parameter("point_bias", parameters.point_bias, (channels,), x)
    check_activation(activation)
    return check_dilation(dilation)


def _describe(
    x,
    local_weight,
    spatial_weight,
    point_weight,
    local_bias=None,
    spatial_bias=None,
    point_bias=None,
    dilation=3,
    activation=None,
) -> tuple[Tensor, Parameters, tuple[int, int], str | None]:
    parameters = Parameters(local_weight, spatial_weight, point_weight, local_bias, spatial_bias, point_bias)
    return x, parameters, _check(x, parameters, dilation, activation), activation


large_kernel_attention.operator = OPERATOR
large_kernel_attention.describe = _describe
