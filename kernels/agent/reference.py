"""Agent attention as its definition reads: agents gather from all keys, and every query reads the agents.

Runs on any device and dtype, in at least float32. This file is the specification that other backends are tested
against.
"""

import torch
from torch import Tensor


def unsupported(direction: str, *call) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def _heads_first(x: Tensor) -> Tensor:
    """View [B, N, heads, D] as [B, heads, N, D] in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return the softmax over keys, [B, heads, N, M]."""
    logits = torch.matmul(q * scale, k.mT)
    return (logits if bias is None else logits.add_(bias)).softmax(-1)


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
    queries, keys, values, means = (_heads_first(x) for x in (q, k, v, agents))
    gathered = torch.matmul(_weights(means, keys, agent_bias, scale), values)
    out = torch.matmul(_weights(queries, means, query_bias, scale), gathered)
    return out.transpose(1, 2).to(v.dtype).contiguous()
