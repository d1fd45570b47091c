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


def gather(means: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Return what the agents gather, [B, heads, n, E], and the log-sum-exp of their logits, [B, heads, n]."""
    logits = _logits(means, keys, bias, scale)
    weights = logits.softmax(-1)
    # The largest weight is exp(largest logit - log-sum-exp): two passes of amax cost less than logsumexp.
    lse = logits.amax(-1) - weights.amax(-1).log()
    return torch.matmul(weights, values), lse


def read_weights(means: Tensor, queries: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return the weights of agents to queries, [B, heads, n, N].

    Tokens are the last axis, because they are many: a softmax over a few agents then reads memory in order.
    """
    return _logits(means, queries, None if bias is None else bias.mT, scale).softmax(-2)


def forward(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, agent_bias: Tensor | None, query_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output [B, N, heads, E] in the dtype of v, and what `gather` returns, in at least float32."""
    queries, keys, values, means = (heads_first(x) for x in (q, k, v, agents))
    gathered, lse = gather(means, keys, values, agent_bias, scale)
    return _back(torch.matmul(read_weights(means, queries, query_bias, scale).mT, gathered), v), gathered, lse


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
    gathered: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of q, k, v, agents and both biases, given that of the output; weights are computed again."""
    douts, queries, keys, values, means = (heads_first(x) for x in (dout, q, k, v, agents))
    weights = _logits(means, keys, agent_bias, scale).sub_(lse.unsqueeze(-1)).exp_()
    read = read_weights(means, queries, query_bias, scale)
    dgathered = torch.matmul(read, douts)
    dread = _dlogits(read, torch.matmul(gathered, douts.mT), -2)
    dgather = _dlogits(weights, torch.matmul(dgathered, values.mT), -1)
    dagents = (torch.matmul(dread, queries) + torch.matmul(dgather, keys)).mul_(scale)
    return (
        _back(torch.matmul(dread.mT, means).mul_(scale), q),
        _back(torch.matmul(dgather.mT, means).mul_(scale), k),
        _back(torch.matmul(weights.mT, dgathered), v),
        _back(dagents, agents),
        None if agent_bias is None else narrow(dgather.sum(0), agent_bias.dtype),
        None if query_bias is None else narrow(dread.sum(0).mT, query_bias.dtype).contiguous(),
    )
