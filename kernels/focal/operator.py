"""Registration of focal modulation with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator

OPERATOR = Operator(__package__, ("reference",))


@torch.library.custom_op("saccade::focal_modulation", mutates_args=())
def modulation(
    context: Tensor, gates: Tensor, weights: Tensor, kernels: Sequence[int], normalize: bool, backend: str
) -> Tensor:
    problem = (context, gates, weights, kernels, normalize)
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem)


@modulation.register_fake
def _(context, gates, weights, kernels, normalize, backend):
    return context.new_empty(context.shape)


@torch.library.custom_op("saccade::focal_modulation_backward", mutates_args=())
def modulation_backward(
    dout: Tensor, context: Tensor, gates: Tensor, weights: Tensor, kernels: Sequence[int], normalize: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    problem = (context, gates, weights, kernels, normalize)
    return OPERATOR.choose(backend, "backward", *problem).backward(dout, *problem)


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
