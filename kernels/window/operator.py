"""Registration of window attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator

OPERATOR = Operator(__package__, ("fused", "reference"))


@torch.library.custom_op("saccade::window_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    window: Sequence[int],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    problem = (q, k, v, bias, mask, tuple(window))
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem, scale)


@attention.register_fake
def _(q, k, v, bias, mask, window, scale, backend):
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return v.new_empty(v.shape), q.new_empty(q.shape[:-1], dtype=lse_dtype)


@torch.library.custom_op("saccade::window_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    window = tuple(window)
    chosen = OPERATOR.choose(backend, "backward", q, k, v, bias, mask, window)
    dq, dk, dv, dbias = chosen.backward(dout, dlse, q, k, v, bias, mask, out, lse, window, scale)
    # A custom op returns tensors only: no bias is an empty gradient.
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@attention_backward.register_fake
def _(dout, dlse, q, k, v, bias, mask, out, lse, window, scale, backend):
    dbias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _save(ctx, inputs, output):
    *tensors, ctx.window, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, dout, dlse):
    q, k, v, bias, *saved = ctx.saved_tensors
    *gradients, dbias = call_backward(dout, dlse, q, k, v, bias, *saved, ctx.window, ctx.scale, ctx.backend)
    return *gradients, None if bias is None else dbias, None, None, None, None


call = differentiable(
    attention, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=5, shared=(3, 4))
)
call_backward = differentiable_once(
    attention_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=9, shared=(5, 6), sums_over_batch=True),
)


@register_flop_formula(torch.ops.saccade.window_attention)
def _forward_flops(
    q_shape, k_shape, v_shape, bias_shape, mask_shape, window, *settings, out_shape=None, **kwargs
) -> int:
    pairs = math.prod(q_shape[:-1]) * math.prod(window)
    return 2 * pairs * (q_shape[-1] + v_shape[-1])


@register_flop_formula(torch.ops.saccade.window_attention_backward)
def _backward_flops(
    dout, dlse, q_shape, k, v_shape, bias, mask, out, lse, window, *settings, out_shape=None, **kwargs
) -> int:
    # Logits once more, then the products for dq, dk (with D) and d weights, dv (with the value's D).
    pairs = math.prod(q_shape[:-1]) * math.prod(window)
    return 2 * pairs * (3 * q_shape[-1] + 2 * v_shape[-1])
