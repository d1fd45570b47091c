"""Registration of agent attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import as_given, as_tensors, differentiable, differentiable_once, fold_into_batch, keep
from ..dispatch import Operator

OPERATOR = Operator(__package__, ("fused", "blocked", "reference"))


@torch.library.custom_op("saccade::agent_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None,
    query_bias: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = (q, k, v, agents, agent_bias, query_bias)
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem, scale)


@attention.register_fake
def _(q, k, v, agents, agent_bias, query_bias, scale, backend):
    batch, means, heads, _ = agents.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    gathered = v.new_empty(batch, heads, means, v.shape[-1], dtype=dtype)
    return v.new_empty(*q.shape[:-1], v.shape[-1]), gathered, v.new_empty(batch, heads, means, dtype=dtype)


@torch.library.custom_op("saccade::agent_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None,
    query_bias: Tensor | None,
    gathered: Tensor,
    lse: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = (q, k, v, agents, agent_bias, query_bias)
    gradients = OPERATOR.choose(backend, "backward", *problem).backward(dout, *problem, gathered, lse, scale)
    return as_tensors(gradients, q)


@attention_backward.register_fake
def _(dout, q, k, v, agents, agent_bias, query_bias, gathered, lse, scale, backend):
    tensors = (q, k, v, agents, agent_bias, query_bias)
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors)


def _save(ctx, inputs, output):
    *tensors, ctx.scale, ctx.backend = inputs
    keep(ctx, output[1:], *tensors)


def _gradients(ctx, dout, *others):
    if dout is None:
        return (None,) * 8
    gathered, lse, *tensors = ctx.saved_tensors
    gradients = call_backward(dout, *tensors, gathered, lse, ctx.scale, ctx.backend)
    return *as_given(gradients, tensors), None, None


call = differentiable(
    attention, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=6, shared=(4, 5))
)
call_backward = differentiable_once(
    attention_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=9, shared=(5, 6), sums_over_batch=True),
)


def _pairs(q_shape, k_shape, agents_shape) -> int:
    """Return how often an agent meets a key or a query."""
    batch, agents, heads, _ = agents_shape
    return batch * heads * agents * (math.prod(q_shape[1:-2]) + math.prod(k_shape[1:-2]))


@register_flop_formula(torch.ops.saccade.agent_attention)
def _forward_flops(q_shape, k_shape, v_shape, agents_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * _pairs(q_shape, k_shape, agents_shape) * (q_shape[-1] + v_shape[-1])


@register_flop_formula(torch.ops.saccade.agent_attention_backward)
def _backward_flops(dout, q_shape, k_shape, v_shape, agents_shape, *rest, out_shape=None, **kwargs) -> int:
    # Logits once more and their two gradients, and the gradients of weights and values.
    return 2 * _pairs(q_shape, k_shape, agents_shape) * (3 * q_shape[-1] + 2 * v_shape[-1])
