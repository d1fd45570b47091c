"""Registration of dynamic depthwise convolution with torch: custom ops, shapes, gradients, batching and FLOPs."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator

OPERATOR = Operator(__package__, ("blocked", "reference"))


@torch.library.custom_op("saccade::dynamic_depthwise_conv2d", mutates_args=())
def convolution(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    return OPERATOR.choose(backend, "forward", x, weight).forward(x, weight)


@convolution.register_fake
def _(x, weight, backend):
    return x.new_empty(x.shape)


@torch.library.custom_op("saccade::dynamic_depthwise_conv2d_backward", mutates_args=())
def convolution_backward(dout: Tensor, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return OPERATOR.choose(backend, "backward", x, weight).backward(dout, x, weight)


@convolution_backward.register_fake
def _(dout, x, weight, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    x, weight, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx, dout):
    return *call_backward(dout, *ctx.saved_tensors, ctx.backend), None


call = differentiable(convolution, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=2))
call_backward = differentiable_once(
    convolution_backward, fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=3)
)


@register_flop_formula(torch.ops.saccade.dynamic_depthwise_conv2d)
def _forward_flops(x_shape, weight_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(x_shape) * math.prod(weight_shape[2:])


@register_flop_formula(torch.ops.saccade.dynamic_depthwise_conv2d_backward)
def _backward_flops(dout_shape, x_shape, weight_shape, *rest, out_shape=None, **kwargs) -> int:
    return 4 * math.prod(x_shape) * math.prod(weight_shape[2:])
