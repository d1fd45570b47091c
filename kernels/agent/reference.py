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


def heads_first(x: Tensor) -> Tensor:
    """View [B, N, heads, D] as [B, heads, N, D] in at least float32."""
    return widen(x).transpose(1, 2)


def _back(x: Tensor, like: Tensor) -> Tensor:
    """Return [B, heads, N, D] as [B, N, heads, D] in the dtype of `like`."""
    return narrow(x.transpose(1, 2), like.dtype).contiguous()


def _logits(means: Tensor, tokens: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return the logits of agents and tokens, [B, heads, n, N]."""
    logits = torch.matmul(means * scale, tokens.mT)
    return logits if bias is None else logits.add_(bias)


def gather_weights(means: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return the weights of keys to agents, [B, heads, n, M]."""
    return _logits(means, keys, bias, scale).softmax(-1)


def read_weights(means: Tensor, queries: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return the weights of agents to queries, [B, heads, n, N].

    Tokens are the last axis, because they are many: a softmax over a few agents then reads memory in order.
    """
    return _logits(means, queries, None if bias is None else bias.mT, scale).softmax(-2)


def forward(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, agent_bias: Tensor | None, query_bias: Tensor | None, scale: float
) -> Tensor:
    """Return the output [B, N, heads, E] in the dtype of v."""
    queries, keys, values, means = (heads_first(x) for x in (q, k, v, agents))
    gathered = torch.matmul(gather_weights(means, keys, agent_bias, scale), values)
    return _back(torch.matmul(read_weights(means, queries, query_bias, scale).mT, gathered), v)


def _dlogits(weights: Tensor, dweights: Tensor, axis: int) -> Tensor:
    """Return the gradient of the logits, given that of their softmax."""
    mean = (weights * dweights).sum(axis, keepdim=True)
    return dweights.sub_(mean).mul_(weights)


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
    douts, queries, keys, values, means = (heads_first(x) for x in (dout, q, k, v, agents))
    gather = gather_weights(means, keys, agent_bias, scale)
    read = read_weights(means, queries, query_bias, scale)
    gathered, dgathered = torch.matmul(gather, values), torch.matmul(read, douts)
    dread = _dlogits(read, torch.matmul(gathered, douts.mT), -2)
    dgather = _dlogits(gather, torch.matmul(dgathered, values.mT), -1)
    dagents = (torch.matmul(dread, queries) + torch.matmul(dgather, keys)).mul_(scale)
    return (
        _back(torch.matmul(dread.mT, means).mul_(scale), q),
        _back(torch.matmul(dgather.mT, means).mul_(scale), k),
        _back(torch.matmul(gather.mT, dgathered), v),
        _back(dagents, agents),
        None if agent_bias is None else narrow(dgather.sum(0), agent_bias.dtype),
        None if query_bias is None else narrow(dread.sum(0).mT, query_bias.dtype).contiguous(),
    )
