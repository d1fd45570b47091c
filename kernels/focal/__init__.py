"""Focal modulation: queries times contexts of growing reach, gathered by depthwise convolutions, weighted by gates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch
from ..autocast import cast
from ..checks import check_map, check_parameter
from .operator import OPERATOR, call, pack

__all__ = ["focal_modulation"]


def focal_modulation(
    projected: Tensor,
    weights: Sequence[Tensor],
    point_weight: Tensor,
    point_bias: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Multiply the query of every token by its modulator: query * point(gated sum of the token's contexts).

    A token of `projected` holds its query (C numbers), its context (C), its L + 1 gates, and what is left over, which
    is not read. Level l's context is z_l = GELU(depthwise_l(z_(l-1))), from z_0 = context, with zeros around the map;
    the last one is the GELU of the mean of z_L. The sum is gate_1 z_1 + ... + gate_L z_L + gate_(L+1) z_(L+1), and
    `point` mixes its channels.

    Args:
        projected: [B, H, W, D] with D of at least 2C + L + 1. Gates are taken as they are: neither softmax nor sigmoid.
            Rows of a multiple of 16 numbers are read fastest. Under autocast it is cast to the autocast dtype.
        weights: L depthwise kernels [C, 1, k, k] of odd k.
        point_weight: [C, C] as torch.nn.Linear has it.
        point_bias: [C]. All parameters are in the dtype of `projected` or float32.
        normalize: divide the sum by L + 1.

    Returns:
        [B, H, W, C] in the dtype of `projected`, differentiable once. Sums are taken in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device does not fit.

    Source: Yang et al., arXiv 2203.11926.
    """
    (projected,) = cast(projected)
    kernels = _check(projected, weights, point_weight, point_bias)
    packed = pack(weights, point_weight.new_empty(point_weight.shape[0], 0))
    inputs = (projected, packed, point_weight, point_bias)
    keeps = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return call(*inputs, kernels, normalize, keeps, dispatch.requested())[0]


def _check(projected: Tensor, weights: Sequence[Tensor], point_weight: Tensor, point_bias: Tensor | None) -> list[int]:
    """Check the arguments and return the kernel size of each level."""
    check_map("projected", projected)
    channels = point_weight.shape[0] if point_weight.dim() else 0
    if channels < 1:
        raise ValueError(f"point_weight has shape {list(point_weight.shape)}; valid: [C, C] with C of at least 1")
    check_parameter("point_weight", point_weight, [channels, channels], projected, "projected")
    if point_bias is not None:
        check_parameter("point_bias", point_bias, [channels], projected, "projected")
    kernels = [weight.shape[-1] if weight.dim() else 0 for weight in weights]
    for level, (weight, size) in enumerate(zip(weights, kernels, strict=True)):
        if size % 2 == 0:
            raise ValueError(f"weights[{level}] has shape {list(weight.shape)}; valid: [C, 1, k, k] with an odd k")
        check_parameter(f"weights[{level}]", weight, [channels, 1, size, size], projected, "projected")
    least = 2 * channels + len(weights) + 1
    if projected.shape[-1] < least:
        raise ValueError(
            f"projected has shape {list(projected.shape)}; valid with {channels} channels and {len(weights)} weights: "
            f"[B, H, W, D] with D of at least {least}"
        )
    return kernels


def _describe(
    projected: Tensor,
    weights: Sequence[Tensor],
    point_weight: Tensor,
    point_bias: Tensor | None = None,
    normalize: bool = False,
) -> tuple[Tensor, Sequence[Tensor], Tensor, Tensor | None, bool]:
    _check(projected, weights, point_weight, point_bias)
    return projected, weights, point_weight, point_bias, normalize


focal_modulation.operator = OPERATOR
focal_modulation.describe = _describe
