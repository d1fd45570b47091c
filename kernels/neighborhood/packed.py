"""Registration of neighborhood attention on one packed projection, whose gradient is written where it belongs.

On three views of a projection autograd would put dq, dk and dv together in a pass of its own.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from .geometry import geometry
from .operator import OPERATOR


@torch.library.custom_op("saccade::neighborhood_attention_packed", mutates_args=())
def attention(
    qkv: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    causal: Sequence[bool],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(-3)
    problem = (q, k, v, bias, geometry(q.shape[1:-2], window, stride, dilation, causal))
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem, scale)


@attention.register_fake
def _(qkv, bias, window, stride, dilation, causal, scale, backend):
    shape = (*qkv.shape[:-3], *qkv.shape[-2:])
    return qkv.new_empty(shape), qkv.new_empty(shape[:-1], dtype=torch.promote_types(qkv.dtype, torch.float32))


@torch.library.custom_op("saccade::neighborhood_attention_packed_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    dlse: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    causal: Sequence[bool],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(-3)
    shape = geometry(q.shape[1:-2], window, stride, dilation, causal)
    chosen = OPERATOR.choose(backend, "backward", q, k, v, bias, shape)
    dqkv = qkv.new_empty(qkv.shape)
    call = (dout, dlse, q, k, v, bias, out, lse, shape, scale)
    if hasattr(chosen, "backward_into"):
        dbias = chosen.backward_into(dqkv.unbind(-3), *call)
    else:
        *gradients, dbias = chosen.backward(*call)
        torch.stack(gradients, -3, out=dqkv)
    # A custom op returns tensors only: no bias is an empty gradient.
    return dqkv, qkv.new_empty(0) if dbias is None else dbias


@attention_backward.register_fake
def _(dout, dlse, qkv, bias, out, lse, window, stride, dilation, causal, scale, backend):
    return qkv.new_empty(qkv.shape), qkv.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    qkv, bias, *ctx.settings = inputs
    ctx.save_for_backward(qkv, bias, *output)


def _gradients(ctx, dout, dlse):
    qkv, bias, out, lse = ctx.saved_tensors
    dqkv, dbias = call_backward(dout, dlse, qkv, bias, out, lse, *ctx.settings)
    return dqkv, None if bias is None else dbias, *(None for _ in ctx.settings)


call = differentiable(
    attention, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=2, shared=(1,))
)
call_backward = differentiable_once(
    attention_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=6, shared=(3,), sums_over_batch=True),
)


@register_flop_formula(torch.ops.saccade.neighborhood_attention_packed)
def _forward_flops(shape, bias_shape, window, *settings, out_shape=None, **kwargs) -> int:
    return 4 * math.prod(shape) // 3 * math.prod(window)


@register_flop_formula(torch.ops.saccade.neighborhood_attention_packed_backward)
def _backward_flops(dout, dlse, shape, bias, out, lse, window, *settings, out_shape=None, **kwargs) -> int:
    return 10 * math.prod(shape) // 3 * math.prod(window)
