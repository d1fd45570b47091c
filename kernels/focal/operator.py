"""Registration of focal modulation with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch, keep
from ..dispatch import Operator
from .saved import Saved

OPERATOR = Operator(__package__, ("fused", "blocked", "reference"))
INPUTS = 4
SAVED = len(Saved._fields)


def pack(weights: Sequence[Tensor], none: Tensor) -> Tensor:
    """Return the kernels of all levels side by side, [C, k_1^2 + ... + k_L^2]; `none`, [C, 0], if there are none.

    A list of tensors does not go through `torch.autograd.Function`.
    """
    return torch.cat([none, *(weight.flatten(1) for weight in weights)], 1)


def unpack(weights: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Return the kernel of each level, [C, 1, k, k]."""
    levels = weights.split([k * k for k in kernels], 1)
    return [level.reshape(-1, 1, k, k) for level, k in zip(levels, kernels, strict=True)]


@torch.library.custom_op("saccade::focal_modulation", mutates_args=())
def modulation(
    projected: Tensor,
    weights: Tensor,
    point_weight: Tensor,
    point_bias: Tensor | None,
    kernels: Sequence[int],
    normalize: bool,
    keeps: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the output and, with `keeps`, what is in `Saved`; else four empty tensors."""
    problem = (projected, unpack(weights, kernels), point_weight, point_bias, normalize)
    out, saved = OPERATOR.choose(backend, "forward", *problem).forward(*problem, keeps)
    return out, *(saved or (projected.new_empty(len(projected), 0) for _ in range(SAVED)))


@modulation.register_fake
def _(projected, weights, point_weight, point_bias, kernels, normalize, keeps, backend):
    batch, height, width, _ = projected.shape
    out = projected.new_empty(batch, height, width, point_weight.shape[0])
    if not keeps:
        return out, *(projected.new_empty(batch, 0) for _ in range(SAVED))
    levels = (batch, len(kernels), height, width, point_weight.shape[0])
    mean = projected.new_empty(levels[0], levels[-1], dtype=torch.promote_types(projected.dtype, torch.float32))
    return out, out.new_empty(out.shape), out.new_empty(levels), out.new_empty(levels), mean


@torch.library.custom_op("saccade::focal_modulation_backward", mutates_args=())
def modulation_backward(
    dout: Tensor,
    modulator: Tensor,
    contexts: Tensor,
    convolved: Tensor,
    mean: Tensor,
    projected: Tensor,
    weights: Tensor,
    point_weight: Tensor,
    point_bias: Tensor | None,
    kernels: Sequence[int],
    normalize: bool,
    keeps: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = (projected, unpack(weights, kernels), point_weight, point_bias, normalize)
    chosen = OPERATOR.choose(backend, "backward", *problem)
    # Within some of torch.func's transforms a tensor does not tell that it will be asked for a gradient.
    saved = Saved(modulator, contexts, convolved, mean) if keeps else chosen.forward(*problem, True)[1]
    dprojected, dweights, dpoint_weight, dpoint_bias = chosen.backward(dout, saved, *problem)
    # A custom op returns tensors only: no bias is an empty gradient.
    dpoint_bias = point_weight.new_empty(0) if point_bias is None else dpoint_bias
    return dprojected, pack(dweights, weights[:, :0]), dpoint_weight, dpoint_bias


@modulation_backward.register_fake
def _(dout, modulator, contexts, convolved, mean, projected, weights, point_weight, point_bias, *settings):
    biases = point_weight.new_empty(0) if point_bias is None else point_bias.new_empty(point_bias.shape)
    return *(x.new_empty(x.shape) for x in (projected, weights, point_weight)), biases


def _save(ctx, inputs, output):
    ctx.settings = inputs[INPUTS:]
    keep(ctx, output[1:], *inputs[:INPUTS])


def _gradients(ctx, dout, *saved):
    if dout is None:
        return (None,) * (INPUTS + len(ctx.settings))
    tensors = ctx.saved_tensors
    *gradients, dpoint_bias = call_backward(dout, *tensors, *ctx.settings)
    return *gradients, None if tensors[-1] is None else dpoint_bias, *(None for _ in ctx.settings)


call = differentiable(
    modulation,
    _save,
    _gradients,
    fold_into_batch(lambda *inputs: call(*inputs), tensors=INPUTS, shared=range(1, INPUTS)),
)
call_backward = differentiable_once(
    modulation_backward,
    fold_into_batch(
        lambda *inputs: call_backward(*inputs),
        tensors=1 + SAVED + INPUTS,
        shared=range(2 + SAVED, 1 + SAVED + INPUTS),
        sums_over_batch=True,
    ),
)


def _products(projected_shape: Sequence[int], point_shape: Sequence[int], kernels: Sequence[int]) -> tuple[int, ...]:
    """Return the products of all convolutions over the map, of the gated sum, and of `point`."""
    entries = math.prod(projected_shape[:-1]) * point_shape[0]
    return entries * sum(k * k for k in kernels), entries * (len(kernels) + 1), entries * point_shape[0]


@register_flop_formula(torch.ops.saccade.focal_modulation)
def _forward_flops(projected_shape, weights, point_shape, bias, kernels, *settings, out_shape=None, **kwargs) -> int:
    return 2 * sum(_products(projected_shape, point_shape, kernels))


@register_flop_formula(torch.ops.saccade.focal_modulation_backward)
def _backward_flops(*arguments, out_shape=None, **kwargs) -> int:
    projected_shape, _, point_shape, _, kernels = arguments[1 + SAVED : 2 + SAVED + INPUTS]
    depthwise, gated, point = _products(projected_shape, point_shape, kernels)
    # By input and by kernel; by gate and by context; by input, by weight, and once more for the query's gradient.
    return 2 * (2 * depthwise + 2 * gated + 3 * point)
