"""Registration of depthwise convolution with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator

OPERATOR = Operator(__package__, ("fused", "blocked", "reference"))


@torch.library.custom_op("saccade::depthwise_conv2d", mutates_args=())
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: Sequence[int],
    activation: str | None,
    residual: bool,
    backend: str,
) -> Tensor:
    problem = (x, weight, bias, dilation, activation, residual)
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem)


@convolution.register_fake
def _(x, *rest):
    return x.new_empty(x.shape)


@torch.library.custom_op("saccade::depthwise_conv2d_backward", mutates_args=())
def convolution_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: Sequence[int],
    activation: str | None,
    residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = (x, weight, bias, dilation, activation, residual)
    dx, dweight, dbias = OPERATOR.choose(backend, "backward", *problem).backward(dout, *problem)
    # A custom op returns tensors only: no bias is an empty gradient.
    return dx, dweight, x.new_empty(0) if dbias is None else dbias


@convolution_backward.register_fake
def _(dout, x, weight, bias, *settings):
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _save(ctx, inputs, output):
    x, weight, bias, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradients(ctx, dout):
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = call_backward(dout, x, weight, bias, *ctx.settings)
    return dx, dweight, None if bias is None else dbias, *(None for _ in ctx.settings)


call = differentiable(
    convolution, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=3, shared=(1, 2))
)
call_backward = differentiable_once(
    convolution_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=4, shared=(2, 3), sums_over_batch=True),
)


def products(x_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """Return the multiplications of one depthwise convolution, padding included."""
    return math.prod(x_shape) * math.prod(weight_shape[1:])


@register_flop_formula(torch.ops.saccade.depthwise_conv2d)
def _forward_flops(x_shape, weight_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * products(x_shape, weight_shape)


@register_flop_formula(torch.ops.saccade.depthwise_conv2d_backward)
def _backward_flops(
    dout_shape, x_shape, weight_shape, bias_shape, dilation, activation, *rest, out_shape=None, **kwargs
) -> int:
    # With an activation the convolution is taken again.
    return (6 if activation else 4) * products(x_shape, weight_shape)
