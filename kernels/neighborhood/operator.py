"""Registration of neighborhood attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator
from .geometry import geometry

OPERATOR = Operator(__package__, ("fused", "natten", "blocked", "reference"))


@torch.library.custom_op("saccade::neighborhood_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    causal: Sequence[bool],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    problem = (q, k, v, bias, geometry(q.shape[1:-2], window, stride, dilation, causal))
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem, scale)


@attention.register_fake
def _(q, k, v, bias, window, stride, dilation, causal, scale, backend):
    return v.new_empty(v.shape), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("saccade::neighborhood_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    causal: Sequence[bool],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = geometry(q.shape[1:-2], window, stride, dilation, causal)
    chosen = OPERATOR.choose(backend, "backward", q, k, v, bias, shape)
    dq, dk, dv, dbias = chosen.backward(dout, dlse, q, k, v, bias, out, lse, shape, scale)
    # A custom op returns tensors only: no bias is an empty gradient.
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@attention_backward.register_fake
def _(dout, dlse, q, k, v, bias, out, lse, window, stride, dilation, causal, scale, backend):
    dbias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _save(ctx, inputs, output):
    q, k, v, bias, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, bias, *output)


def _gradients(ctx, dout, dlse):
    q, k, v, bias, out, lse = ctx.saved_tensors
    dq, dk, dv, dbias = call_backward(dout, dlse, q, k, v, bias, out, lse, *ctx.settings)
    return dq, dk, dv, None if bias is None else dbias, *(None for _ in ctx.settings)


call = differentiable(
    attention, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=4, shared=(3,))
)
call_backward = differentiable_once(
    attention_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=8, shared=(5,), sums_over_batch=True),
)


@register_flop_formula(torch.ops.saccade.neighborhood_attention)
def _forward_flops(q_shape, k_shape, v_shape, bias_shape, window, *settings, out_shape=None, **kwargs) -> int:
    pairs = math.prod(q_shape[:-1]) * math.prod(window)
    return 2 * pairs * (q_shape[-1] + v_shape[-1])


@register_flop_formula(torch.ops.saccade.neighborhood_attention_backward)
def _backward_flops(
    dout, dlse, q_shape, k, v_shape, bias, out, lse, window, *settings, out_shape=None, **kwargs
) -> int:
    # Logits once more, then the products for dq, dk (with D) and d weights, dv (with the value's D).
    pairs = math.prod(q_shape[:-1]) * math.prod(window)
    return 2 * pairs * (3 * q_shape[-1] + 2 * v_shape[-1])
