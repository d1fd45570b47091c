"""Registration of large kernel attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch, keep
from ..depthwise.operator import products
from ..dispatch import Operator
from .parameters import Parameters

OPERATOR = Operator(__package__, ("fused", "blocked", "reference"))
PARAMETERS = len(Parameters._fields)


@torch.library.custom_op("saccade::large_kernel_attention", mutates_args=())
def attention(
    x: Tensor,
    local_weight: Tensor,
    spatial_weight: Tensor,
    point_weight: Tensor,
    local_bias: Tensor | None,
    spatial_bias: Tensor | None,
    point_bias: Tensor | None,
    dilation: Sequence[int],
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parameters = Parameters(local_weight, spatial_weight, point_weight, local_bias, spatial_bias, point_bias)
    problem = (x, parameters, dilation, activation)
    out, local, spatial, active = OPERATOR.choose(backend, "forward", *problem).forward(*problem)
    return out, local, spatial, x.new_empty(0) if active is None else active


@attention.register_fake
def _(x, *rest):
    activation = rest[PARAMETERS + 1]
    return *(x.new_empty(x.shape) for _ in range(3)), x.new_empty(x.shape if activation else 0)


@torch.library.custom_op("saccade::large_kernel_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    x: Tensor,
    local: Tensor,
    spatial: Tensor,
    active: Tensor,
    local_weight: Tensor,
    spatial_weight: Tensor,
    point_weight: Tensor,
    local_bias: Tensor | None,
    spatial_bias: Tensor | None,
    point_bias: Tensor | None,
    dilation: Sequence[int],
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = Parameters(local_weight, spatial_weight, point_weight, local_bias, spatial_bias, point_bias)
    chosen = OPERATOR.choose(backend, "backward", x, parameters, dilation, activation)
    kept = (local, spatial, active if activation else None)
    dx, gradients = chosen.backward(dout, x, kept, parameters, dilation)
    # A custom op returns tensors only: no bias is an empty gradient.
    return dx, *(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


@attention_backward.register_fake
def _(dout, x, local, spatial, active, *rest):
    parameters = rest[:PARAMETERS]
    return x.new_empty(x.shape), *(x.new_empty(0) if p is None else p.new_empty(p.shape) for p in parameters)


def _save(ctx, inputs, output):
    ctx.settings = inputs[1 + PARAMETERS :]
    keep(ctx, output[1:], *inputs[: 1 + PARAMETERS])


def _gradients(ctx, dout, *contexts):
    if dout is None:
        return (None,) * (1 + PARAMETERS + len(ctx.settings))
    local, spatial, active, x, *parameters = ctx.saved_tensors
    dx, *gradients = call_backward(dout, x, local, spatial, active, *parameters, *ctx.settings)
    given = (None if p is None else gradient for p, gradient in zip(parameters, gradients, strict=True))
    return dx, *given, *(None for _ in ctx.settings)


call = differentiable(
    attention,
    _save,
    _gradients,
    fold_into_batch(lambda *inputs: call(*inputs), tensors=1 + PARAMETERS, shared=range(1, 1 + PARAMETERS)),
)
call_backward = differentiable_once(
    attention_backward,
    fold_into_batch(
        lambda *inputs: call_backward(*inputs),
        tensors=5 + PARAMETERS,
        shared=range(5, 5 + PARAMETERS),
        sums_over_batch=True,
    ),
)


@register_flop_formula(torch.ops.saccade.large_kernel_attention)
def _forward_flops(x_shape, local_shape, spatial_shape, *rest, out_shape=None, **kwargs) -> int:
    depthwise = products(x_shape, local_shape) + products(x_shape, spatial_shape)
    return 2 * (depthwise + math.prod(x_shape) * x_shape[-1])


@register_flop_formula(torch.ops.saccade.large_kernel_attention_backward)
def _backward_flops(
    dout, x_shape, local, spatial, active, local_shape, spatial_shape, *rest, out_shape=None, **kwargs
) -> int:
    # Each convolution twice, and the pointwise one once more for the gate.
    depthwise = products(x_shape, local_shape) + products(x_shape, spatial_shape)
    return 2 * (2 * depthwise + 3 * math.prod(x_shape) * x_shape[-1])
