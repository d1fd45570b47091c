"""Fused agent attention in Triton: agents stay on chip, and no matrix of agents and tokens reaches memory but for the
gradients of the biases.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in one order, so results repeat to the bit.
"""

import torch
from torch import Tensor

from ..launch import Plans, on_device, readable, why_not
from ..precision import narrow
from . import reference
from .fused_plan import BackwardPlan, Call, ForwardPlan

LARGEST_WIDTH = 128
MOST_AGENTS = 128
_plans = Plans()


def unsupported(
    direction: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None,
    query_bias: Tensor | None,
) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if max(q.shape[-1], v.shape[-1]) > LARGEST_WIDTH:
        return f"needs head dimensions of at most {LARGEST_WIDTH}, got {q.shape[-1]} and {v.shape[-1]}"
    if agents.shape[1] > MOST_AGENTS:
        return f"needs at most {MOST_AGENTS} agents, got {agents.shape[1]}"
    return why_not(q)


def _prepared(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return q, k, v, agents with channels in order, and the biases contiguous."""
    return [x if x is None else readable(x) if at < 4 else x.contiguous() for at, x in enumerate(tensors)]


@on_device
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None,
    query_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Return the output [B, N, heads, E] in the dtype of v."""
    tensors = _prepared(q, k, v, agents, agent_bias, query_bias)
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype, device=v.device)
    if out.numel():
        plan = _plans(lambda: ForwardPlan(Call(*tensors, scale), out), ("forward", scale), *tensors)
        plan(*tensors, out)
    return out


@on_device
def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None,
    query_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of q, k, v, agents and both biases, given that of the output."""
    if not dout.numel():
        return reference.backward(dout, q, k, v, agents, agent_bias, query_bias, scale)
    dout = readable(dout)
    tensors = _prepared(q, k, v, agents, agent_bias, query_bias)
    gradients = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    plan = _plans(lambda: BackwardPlan(Call(*tensors, scale), dout, *gradients), ("backward", scale), *tensors, dout)
    others = plan(*tensors, dout, *gradients)
    return *gradients, *(
        None if x is None else narrow(gradient, x.dtype).contiguous()
        for x, gradient in zip((agents, agent_bias, query_bias), others, strict=True)
    )
