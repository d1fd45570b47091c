"""Registration of gated linear attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import differentiable, differentiable_once, fold_into_batch
from ..dispatch import Operator
from .reference import chunk_size

OPERATOR = Operator(__package__, ("reference",))


@torch.library.custom_op("saccade::gated_linear_attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, reverse_log_gate: Tensor | None, scale: float, backend: str
) -> Tensor:
    problem = (q, k, v, log_gate, reverse_log_gate)
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem, scale)


@attention.register_fake
def _(q, k, v, log_gate, reverse_log_gate, scale, backend):
    return v.new_empty(v.shape)


@torch.library.custom_op("saccade::gated_linear_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    reverse_log_gate: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = (q, k, v, log_gate, reverse_log_gate)
    *gradients, dreverse = OPERATOR.choose(backend, "backward", *problem).backward(dout, *problem, scale)
    # A custom op returns tensors only: no reverse gates is an empty gradient.
    return *gradients, q.new_empty(0) if dreverse is None else dreverse


@attention_backward.register_fake
def _(dout, q, k, v, log_gate, reverse_log_gate, scale, backend):
    gradients = [x.new_empty(x.shape) for x in (q, k, v, log_gate)]
    return *gradients, q.new_empty(0) if reverse_log_gate is None else reverse_log_gate.new_empty(q.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dout):
    # Under activation checkpointing they can be asked for once.
    saved = ctx.saved_tensors
    *gradients, dreverse = call_backward(dout, *saved, ctx.scale, ctx.backend)
    return *gradients, None if saved[4] is None else dreverse, None, None


call = differentiable(attention, _save, _gradients, fold_into_batch(lambda *inputs: call(*inputs), tensors=5))
call_backward = differentiable_once(
    attention_backward, fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=6)
)


def _sizes(q_shape, v_shape, reverse_shape) -> tuple[int, int, int]:
    """Return pairs of tokens in chunks, and for each scan: products of a state with the tokens, if there are states."""
    tokens, scans = math.prod(q_shape[1:-2]), 1 if reverse_shape is None else 2
    chunk = chunk_size(tokens)
    rows = q_shape[0] * q_shape[-2] * -(-tokens // chunk) * chunk
    return rows * chunk, scans * rows * q_shape[-1] * v_shape[-1] * (tokens > chunk)


@register_flop_formula(torch.ops.saccade.gated_linear_attention)
def _forward_flops(q_shape, k_shape, v_shape, gate_shape, reverse_shape, *settings, out_shape=None, **kwargs) -> int:
    pairs, states = _sizes(q_shape, v_shape, reverse_shape)
    # States are written and read.
    return 2 * pairs * (q_shape[-1] + v_shape[-1]) + 4 * states


@register_flop_formula(torch.ops.saccade.gated_linear_attention_backward)
def _backward_flops(
    dout_shape, q_shape, k_shape, v_shape, gate_shape, reverse_shape, *settings, out_shape=None, **kwargs
) -> int:
    pairs, states = _sizes(q_shape, v_shape, reverse_shape)
    # Weights once more, then the products for dq, dk (with D) and d weights, dv (with the value's D); states once more,
    # their gradients, and the products for dq, dk, dv.
    return 2 * pairs * (3 * q_shape[-1] + 2 * v_shape[-1]) + 10 * states
