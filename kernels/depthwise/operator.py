"""Registration of depthwise convolution with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import as_given, as_tensors, differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator

OPERATOR = Operator(__package__, ("fused", "blocked", "reference"))
PARAMETERS = 3
"""Weight and biases that the op takes after x, or None."""


@torch.library.custom_op("saccade::depthwise_conv2d", mutates_args=())
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_bias: Tensor | None,
    add: Tensor | None,
    dilation: Sequence[int],
    activation: str | None,
    residual: bool,
    backend: str,
) -> Tensor:
    problem = (x, weight, bias, dilation, activation, residual)
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem, add)


@convolution.register_fake
def _(x, *rest):
    return x.new_empty(x.shape)


@torch.library.custom_op("saccade::depthwise_conv2d_backward", mutates_args=())
def convolution_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_bias: Tensor | None,
    dilation: Sequence[int],
    activation: str | None,
    residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = (x, weight, bias, dilation, activation, residual)
    totals = None if x_bias is None else torch.empty_like(x_bias)
    dx, *gradients = OPERATOR.choose(backend, "backward", *problem).backward(dout, *problem, totals)
    return dx, *as_tensors((*gradients, totals), x)


@convolution_backward.register_fake
def _(dout, x, *rest):
    return x.new_empty(x.shape), *(x.new_empty(0) if p is None else p.new_empty(p.shape) for p in rest[:PARAMETERS])


def _save(ctx, inputs, output):
    add, *ctx.settings = inputs[1 + PARAMETERS :]
    ctx.adds = add is not None
    ctx.save_for_backward(*inputs[: 1 + PARAMETERS])


def _gradients(ctx, dout):
    x, *parameters = ctx.saved_tensors
    dx, *gradients = call_backward(dout, x, *parameters, *ctx.settings)
    dadd = dout if ctx.adds else None
    return dx, *as_given(gradients, parameters), dadd, *(None for _ in ctx.settings)


call = differentiable(
    convolution, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=5, shared=(1, 2, 3))
)
call_backward = differentiable_once(
    convolution_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=5, shared=(2, 3, 4), sums_over_batch=True),
)


def products(x_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """Return the multiplications of one depthwise convolution, padding included."""
    return math.prod(x_shape) * math.prod(weight_shape[1:])


@register_flop_formula(torch.ops.saccade.depthwise_conv2d)
def _forward_flops(x_shape, weight_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * products(x_shape, weight_shape)


@register_flop_formula(torch.ops.saccade.depthwise_conv2d_backward)
def _backward_flops(
    dout_shape, x_shape, weight_shape, bias_shape, x_bias_shape, dilation, activation, *rest, out_shape=None, **kwargs
) -> int:
    # With an activation the convolution is taken again.
    return (6 if activation else 4) * products(x_shape, weight_shape)
