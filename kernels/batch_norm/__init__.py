"""Batch normalisation in training, of channels-last maps: by the mean and variance of each channel of the batch."""

import torch
from torch import Tensor

from .. import autocast, dispatch
from ..checks import check_map, check_parameter
from .operator import OPERATOR, call

__all__ = ["batch_norm"]


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel of a map by its mean and variance over the batch, then scale and shift it.

    Args:
        x: [B, H, W, C]. Autocast leaves it as it is, such as float32 of a residual stream.
        weight, bias: [C]; in the dtype of x or float32.
        eps: added to the variance.

    Returns:
        The map [B, H, W, C], under autocast in the autocast dtype, else in that of x, differentiable once; then mean
        and variance [C], for running statistics, in float32 (float64 for float64 inputs), without gradients. The
        variance is that of the batch itself, not an estimate of a population's.

    Raises:
        ValueError: an argument has a shape, dtype or device that is not valid, or there is one token only.

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167.
    """
    x, weight, bias, eps, dtype = _describe(x, weight, bias, eps)
    return call(x, weight, bias, eps, dtype, dispatch.requested())


def _describe(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, float, torch.dtype]:
    check_map("x", x)
    for name, parameter in (("weight", weight), ("bias", bias)):
        check_parameter(name, parameter, x.shape[-1:], x)
    if x.shape[:-1].numel() == 1:
        raise ValueError(f"x has shape {list(x.shape)}; valid: more than one token, to have a variance")
    return x, weight, bias, float(eps), autocast.dtype_of(x, x.device.type)


batch_norm.operator = OPERATOR
batch_norm.describe = _describe
