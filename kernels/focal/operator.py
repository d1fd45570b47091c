"""Registration of focal modulation with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator

OPERATOR = Operator(__package__, ("blocked", "reference", "fused"))


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
    context: Tensor, gates: Tensor, weights: Tensor, kernels: Sequence[int], normalize: bool, backend: str
) -> Tensor:
    problem = (context, gates, unpack(weights, kernels), normalize)
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem)


@modulation.register_fake
def _(context, gates, weights, kernels, normalize, backend):
    return context.new_empty(context.shape)


@torch.library.custom_op("saccade::focal_modulation_backward", mutates_args=())
def modulation_backward(
    dout: Tensor, context: Tensor, gates: Tensor, weights: Tensor, kernels: Sequence[int], normalize: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    problem = (context, gates, unpack(weights, kernels), normalize)
    chosen = OPERATOR.choose(backend, "backward", *problem)
    dcontext, dgates, dweights = chosen.backward(dout, *problem)
    return dcontext, dgates, pack(dweights, weights[:, :0])


@modulation_backward.register_fake
def _(dout, context, gates, weights, kernels, normalize, backend):
    return tuple(x.new_empty(x.shape) for x in (context, gates, weights))


def _save(ctx, inputs, output):
    *tensors, ctx.kernels, ctx.normalize, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dout):
    settings = (ctx.kernels, ctx.normalize, ctx.backend)
    return *call_backward(dout, *ctx.saved_tensors, *settings), *(None for _ in settings)


call = differentiable(
    modulation, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=3, shared=(2,))
)
call_backward = differentiable_once(
    modulation_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=4, shared=(3,), sums_over_batch=True),
)


@register_flop_formula(torch.ops.saccade.focal_modulation)
def _forward_flops(context_shape, gates_shape, weights_shape, kernels, *settings, out_shape=None, **kwargs) -> int:
    # A multiply and an add for each entry of each kernel, and for each gate.
    return 2 * math.prod(context_shape) * (sum(k * k for k in kernels) + gates_shape[-1])


@register_flop_formula(torch.ops.saccade.focal_modulation_backward)
def _backward_flops(dout, context_shape, gates_shape, weights, kernels, *settings, out_shape=None, **kwargs) -> int:
    # The convolutions once more, then their gradients by input and by kernel; the gates' and the contexts' gradients.
    return 2 * math.prod(context_shape) * (3 * sum(k * k for k in kernels) + 2 * gates_shape[-1])
