"""Fused agent attention in Triton: agents stay on chip, and no matrix of agents and tokens reaches memory but for the
gradients of the biases.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in one order, so results repeat to the bit.
"""

import torch
from torch import Tensor
from triton import next_power_of_2

from ..launch import Plans, on_device, readable, why_not
from ..precision import narrow
from . import reference
from .fused_plan import BackwardPlan, Call, ForwardPlan

LARGEST_WIDTH = 128
MOST_AGENTS = 128
MOST_ENTRIES = 1 << 13  # of a tile of agents in float16 and float32, whose tiles are float32 in shared memory
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
    entries = next_power_of_2(agents.shape[1]) * next_power_of_2(max(q.shape[-1], v.shape[-1]))
    if q.dtype != torch.bfloat16 and entries > MOST_ENTRIES:
        return f"needs bfloat16 for {agents.shape[1]} agents of {max(q.shape[-1], v.shape[-1])} channels, got {q.dtype}"
    return why_not(q)


def _prepared(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return q, k, v, agents with channels in order, and the biases with tokens in order: [heads, n, tokens]."""
    *tokens, agent_bias, query_bias = tensors
    agent_bias = None if agent_bias is None else agent_bias.contiguous()
    query_bias = None if query_bias is None else query_bias.mT.contiguous()
    return *(readable(x) for x in tokens), agent_bias, query_bias


def _summed(dlogits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum over the batch in a dtype."""
    # torch adds up in float32 whatever it returns.
    direct = dtype if dlogits.dtype == torch.bfloat16 else torch.float32
    return narrow(dlogits.sum(0, dtype=direct), dtype)


@on_device
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None,
    query_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output [B, N, heads, E] in the dtype of v, V_A [B, heads, n, E] and the log-sum-exp in float32."""
    batch, means, heads, _ = agents.shape
    if not (q.numel() and v.numel()):
        return reference.forward(q, k, v, agents, agent_bias, query_bias, scale)
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype, device=v.device)
    gathered = torch.empty(batch, heads, means, v.shape[-1], dtype=torch.float32, device=v.device)
    lse = torch.empty(batch, heads, means, dtype=torch.float32, device=v.device)
    tensors = _prepared(q, k, v, agents, agent_bias, query_bias)
    plan = _plans(lambda: ForwardPlan(Call(*tensors, scale), out), ("forward", scale), *tensors)
    plan(*tensors, out, gathered, lse)
    return out, gathered, lse


@on_device
def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of q, k, v, agents and both biases, given that of the output."""
    if not (q.numel() and v.numel()):
        return reference.backward(dout, q, k, v, agents, agent_bias, query_bias, gathered, lse, scale)
    dout, gathered, lse = readable(dout), gathered.contiguous(), lse.contiguous()
    tensors = _prepared(q, k, v, agents, agent_bias, query_bias)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    plan = _plans(lambda: BackwardPlan(Call(*tensors, scale), dout, dq, dk, dv), ("backward", scale), *tensors, dout)
    dagents, dgather, dread = plan(*tensors, gathered, lse, dout, dq, dk, dv)
    dagents = narrow(dagents, agents.dtype).contiguous()
    dagent_bias = None if agent_bias is None else _summed(dgather, agent_bias.dtype)
    dquery_bias = None if query_bias is None else _summed(dread, query_bias.dtype).mT.contiguous()
    return dq, dk, dv, dagents, dagent_bias, dquery_bias
