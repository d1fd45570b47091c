"""Registration of large kernel attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import as_given, as_tensors, differentiable, differentiable_once, fold_into_batch, keep
from ..depthwise.operator import products
from ..dispatch import Operator
from .kept import Kept
from .parameters import Parameters

OPERATOR = Operator(__package__, ("fused", "blocked", "reference"))
KEPT = len(Kept._fields)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the output and what is in `Kept`, an empty tensor where that is None."""
    parameters = Parameters(local_weight, spatial_weight, point_weight, local_bias, spatial_bias, point_bias)
    problem = (x, parameters, dilation, activation)
    out, kept = OPERATOR.choose(backend, "forward", *problem).forward(*problem)
    return out, *as_tensors(kept, x)


@attention.register_fake
def _(x, *rest):
    parameters, activation = Parameters(*rest[:PARAMETERS]), rest[PARAMETERS + 1]
    active = x.new_empty(x.shape if activation else 0)
    return x.new_empty(x.shape), *Kept(x.new_empty(x.shape), x.new_empty(x.shape), active, *parameters.taps())


@torch.library.custom_op("saccade::large_kernel_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    x: Tensor,
    local: Tensor,
    spatial: Tensor,
    active: Tensor,
    local_taps: Tensor,
    spatial_taps: Tensor,
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
    kept = Kept(local, spatial, active if activation else None, local_taps, spatial_taps)
    dx, gradients = chosen.backward(dout, x, kept, parameters, dilation)
    return dx, *as_tensors(gradients, x)


@attention_backward.register_fake
def _(dout, x, *rest):
    parameters = rest[KEPT : KEPT + PARAMETERS]
    return x.new_empty(x.shape), *(x.new_empty(0) if p is None else p.new_empty(p.shape) for p in parameters)


def _save(ctx, inputs, output):
    ctx.settings = inputs[1 + PARAMETERS :]
    keep(ctx, output[1:], *inputs[: 1 + PARAMETERS])


def _gradients(ctx, dout, *contexts):
    if dout is None:
        return (None,) * (1 + PARAMETERS + len(ctx.settings))
    saved = ctx.saved_tensors
    kept, (x, *parameters) = saved[:KEPT], saved[KEPT:]
    dx, *gradients = call_backward(dout, x, *kept, *parameters, *ctx.settings)
    return dx, *as_given(gradients, parameters), *(None for _ in ctx.settings)


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
        tensors=2 + KEPT + PARAMETERS,
        # The taps, last in `Kept`, and the parameters.
        shared=range(KEPT, 2 + KEPT + PARAMETERS),
        sums_over_batch=True,
    ),
)


@register_flop_formula(torch.ops.saccade.large_kernel_attention)
def _forward_flops(x_shape, local_shape, spatial_shape, *rest, out_shape=None, **kwargs) -> int:
    depthwise = products(x_shape, local_shape) + products(x_shape, spatial_shape)
    return 2 * (depthwise + math.prod(x_shape) * x_shape[-1])


@register_flop_formula(torch.ops.saccade.large_kernel_attention_backward)
def _backward_flops(dout, x_shape, *rest, out_shape=None, **kwargs) -> int:
    local_shape, spatial_shape = rest[KEPT : KEPT + 2]
    # Each convolution twice, and the pointwise one once more for the gate.
    depthwise = products(x_shape, local_shape) + products(x_shape, spatial_shape)
    return 2 * (2 * depthwise + 3 * math.prod(x_shape) * x_shape[-1])
