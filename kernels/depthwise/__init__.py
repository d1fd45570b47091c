"""Depthwise convolution: every channel of a map is convolved with a kernel of its own."""

from collections.abc import Sequence

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from .checks import check_convolution
from .operator import OPERATOR, call

__all__ = ["depthwise_conv2d"]


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int | Sequence[int] = 1,
    activation: str | None = None,
    residual: bool = False,
    x_bias: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """Convolve each channel of a channels-last map with its own kernel, zero-padded to keep the map.

    Args:
        x: [B, H, W, C]; under autocast it is cast to the autocast dtype.
        weight: [C, 1, kh, kw] as torch.nn.Conv2d has it, of odd extents; in the dtype of x or float32.
        bias: [C], in the dtype of x or float32.
        dilation: steps between the taps of the kernel; one value, or one for rows and one for columns.
        activation: "gelu" for GELU, with the error function, of the convolution with its bias; or None.
        residual: whether x is added at the end.
        x_bias: [C], a bias that has been added to x already, without its gradient: that is the sum of x's, which comes
            in the same pass over the map.
        add: [B, H, W, C], in the dtype of x, a map that is added at the end, before the result is rounded; not along
            with `residual`. Like x it is cast under autocast. Its gradient is that of the output, the same tensor.

    Returns:
        [B, H, W, C] in the dtype of x, differentiable once. Everything before the output is in float32 (float64 for
        float64 inputs); what goes into the activation is not kept for the gradient but convolved again.

    Raises:
        ValueError: an argument has a shape, dtype, device or value that is not valid.
    """
    (x,) = cast(x)
    if add is not None:
        (add,) = cast(add)
    _, _, _, *settings = _describe(x, weight, bias, dilation, activation, residual, x_bias, add)
    return call(x, weight, bias, x_bias, add, *settings, dispatch.requested())


def _describe(x, weight, bias=None, dilation=1, activation=None, residual=False, x_bias=None, add=None) -> tuple:
    dilation = check_convolution(x, weight, bias, dilation, activation, residual, x_bias, add)
    return x, weight, bias, dilation, activation, residual


depthwise_conv2d.operator = OPERATOR
depthwise_conv2d.describe = _describe
