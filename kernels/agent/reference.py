"""Agent attention as its definition reads: agents gather from all keys, and every query reads the agents.

Runs on any device and dtype, in at least float32. This file is the specification that other backends are tested
against.
"""

import torch
from torch import Tensor

from ..precision import narrow, widen


def unsupported(direction: str, *problem: Tensor | None) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def _heads_first(x: Tensor) -> Tensor:
    """View [B, N, heads, D] as [B, heads, N, D] in at least float32."""
    return widen(x).transpose(1, 2)


def _back(x: Tensor, like: Tensor) -> Tensor:
    """Return [B, heads, N, D] as [B, N, heads, D] in the dtype of `like`."""
    return narrow(x.transpose(1, 2), like.dtype).contiguous()


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return the softmax over keys, [B, heads, N, M]."""
    logits = torch.matmul(q * scale, k.mT)
    return (logits if bias is None else logits.add_(bias)).softmax(-1)


def forward(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, agent_bias: Tensor | None, query_bias: Tensor | None, scale: float
) -> Tensor:
    """Return the output [B, N, heads, E] in the dtype of v."""
    queries, keys, values, means = (_heads_first(x) for x in (q, k, v, agents))
    gathered = torch.matmul(_weights(means, keys, agent_bias, scale), values)
    return _back(torch.matmul(_weights(queries, means, query_bias, scale), gathered), v)


def _gradients(weights: Tensor, values: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the logits and of the values, given that of weights @ values."""
    dweights = torch.matmul(dout, values.mT)
    mean = (weights * dweights).sum(-1, keepdim=True)
    return dweights.sub_(mean).mul_(weights), torch.matmul(weights.mT, dout)


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
    """Return the gradients of q, k, v, agents and both biases, given that of the output; weights are computed again."""
    douts, queries, keys, values, means = (_heads_first(x) for x in (dout, q, k, v, agents))
    gather = _weights(means, keys, agent_bias, scale)
    gathered = torch.matmul(gather, values)
    dread, dgathered = _gradients(_weights(queries, means, query_bias, scale), gathered, douts)
    dgather, dvalues = _gradients(gather, values, dgathered)
    dagents = (torch.matmul(dread.mT, queries) + torch.matmul(dgather, keys)).mul_(scale)
    return (
        _back(torch.matmul(dread, means).mul_(scale), q),
        _back(torch.matmul(dgather.mT, means).mul_(scale), k),
        _back(dvalues, v),
        _back(dagents, agents),
        None if agent_bias is None else narrow(dgather.sum(0), agent_bias.dtype),
        None if query_bias is None else narrow(dread.sum(0), query_bias.dtype),
    )
