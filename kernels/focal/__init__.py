"""Focal modulation: contexts of growing reach, gathered by depthwise convolutions and weighted by gates."""

from collections.abc import Sequence

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from ..checks import check_map, check_parameter
from .operator import OPERATOR, call, pack

__all__ = ["focal_modulation"]


def focal_modulation(context: Tensor, gates: Tensor, weights: Sequence[Tensor], normalize: bool = False) -> Tensor:
    """Return the modulator of every token: the gated sum of its contexts, from the nearest to the whole map.

    Level l's context is z_l = GELU(depthwise_l(z_(l-1))) with z_0 = `context` and zeros around the map; the last one is
    the GELU of the mean of z_L. The modulator is gate_1 z_1 + ... + gate_L z_L + gate_(L+1) z_(L+1).

    Args:
        context: [B, H, W, C]; a view of a packed projection is read in place. Under autocast it and the gates are
            cast to the autocast dtype.
        gates: [B, H, W, L + 1], as they are: neither softmax nor sigmoid; in the dtype of the context.
        weights: L depthwise kernels [C, 1, k, k] of odd k; in the dtype of the context or float32.
        normalize: divide the sum by L + 1.

    Returns:
        [B, H, W, C] in the dtype of the context, differentiable once. Sums are taken in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device does not fit.

    Source: Yang et al., arXiv 2203.11926.
    """
    context, gates = cast(context, gates)
    kernels = _check(context, gates, weights)
    packed = pack(weights, context.new_empty(context.shape[-1], 0))
    return call(context, gates, packed, kernels, normalize, dispatch.requested())


def _check(context: Tensor, gates: Tensor, weights: Sequence[Tensor]) -> list[int]:
    """Check the arguments and return the kernel size of each level."""
    check_map("context", context)
    kernels = [weight.shape[-1] if weight.dim() else 0 for weight in weights]
    for level, (weight, size) in enumerate(zip(weights, kernels, strict=True)):
        if size % 2 == 0:
            raise ValueError(f"weights[{level}] has shape {list(weight.shape)}; valid: [C, 1, k, k] with an odd k")
        check_parameter(f"weights[{level}]", weight, [context.shape[-1], 1, size, size], context)
    shape = [*context.shape[:-1], len(weights) + 1]
    if list(gates.shape) != shape:
        raise ValueError(f"gates has shape {list(gates.shape)}; valid with {len(weights)} weights: {shape}")
    if gates.dtype != context.dtype:
        raise ValueError(f"gates has dtype {gates.dtype}; valid: that of context, {context.dtype}")
    if gates.device != context.device:
        raise ValueError(f"gates is on {gates.device}; valid: the device of context, {context.device}")
    return kernels


def _describe(
    context: Tensor, gates: Tensor, weights: Sequence[Tensor], normalize: bool = False
) -> tuple[Tensor, Tensor, Sequence[Tensor], bool]:
    _check(context, gates, weights)
    return context, gates, weights, normalize


focal_modulation.operator = OPERATOR
focal_modulation.describe = _describe
