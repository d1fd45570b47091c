"""Dynamic depthwise convolution: every channel of every sample is convolved with a kernel of its own."""

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from ..checks import check_map, check_parameter
from .operator import OPERATOR, call

__all__ = ["dynamic_depthwise_conv2d"]


def dynamic_depthwise_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each channel of each sample of a channels-last map with its own kernel, zero-padded to keep the map.

    Args:
        x: [B, H, W, C]; under autocast it is cast to the autocast dtype.
        weight: [B, C, kh, kw] of odd extents, such as a network predicts them; in the dtype of x or float32.

    Returns:
        [B, H, W, C] in the dtype of x, differentiable once. Sums are taken in float32 (float64 for float64 inputs).

    Raises:
        ValueError: an argument has a shape, dtype or device that is not valid.

    Source: local residual of InLine attention, arXiv 2412.06590.
    """
    return call(*_describe(x, weight), dispatch.requested())


def _describe(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    (x,) = cast(x)
    check_map("x", x)
    if weight.dim() != 4 or any(size % 2 == 0 for size in weight.shape[2:]):
        raise ValueError(f"weight has shape {list(weight.shape)}; valid: [B, C, kh, kw] with odd kh and kw")
    check_parameter("weight", weight, [x.shape[0], x.shape[3], *weight.shape[2:]], x)
    return x, weight


dynamic_depthwise_conv2d.operator = OPERATOR
dynamic_depthwise_conv2d.describe = _describe
