"""Agent attention: a few agent tokens gather from all keys, and every query reads what they have."""

import math

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from ..checks import check_parameter, check_tokens
from .operator import OPERATOR, call

__all__ = ["agent_attention"]


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend in two steps, agents to keys and queries to agents, at a cost that grows linearly with the tokens.

    In each head, with A the agents:

        V_A = softmax(scale A K^T + agent_bias) V
        out = softmax(scale Q A^T + query_bias) V_A

    Args:
        q: [B, *spatial, heads, D], N tokens in all.
        k: [B, *key_spatial, heads, D], M tokens in all, and v [B, *key_spatial, heads, E]; one dtype and device. Under
            autocast they are cast to the autocast dtype.
        agents: [B, *agent_spatial, heads, D], n tokens in all.
        agent_bias: [heads, n, M], added to the logits of agents and keys; in the dtype of q or float32.
        query_bias: [heads, N, n], added to the logits of queries and agents; in the dtype of q or float32.
        scale: factor of both products; default D ** -0.5. Biases are not scaled.

    Returns:
        [B, *spatial, heads, E] in the dtype of v, differentiable once in every tensor. Softmax and sums are taken in
        float32 (float64 for float64 inputs).

    Raises:
        ValueError: a tensor has a shape, dtype or device that does not fit.

    Source: Han et al., "Agent Attention", arXiv 2312.08874.
    """
    spatial = q.shape[1:-2]
    problem = _describe(q, k, v, agents, agent_bias, query_bias)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, _, _ = call(*problem, scale, dispatch.requested())
    return out.unflatten(1, spatial)


def _describe(q, k, v, agents, agent_bias=None, query_bias=None, scale=None) -> tuple[Tensor | None, ...]:
    q, k, v, agents = cast(q, k, v, agents)
    check_tokens(q, k, v)
    heads, channels = q.shape[-2:]
    tokens, keys, means = (math.prod(x.shape[1:-2]) for x in (q, k, agents))
    if agents.dim() < 4 or agents.shape[0] != q.shape[0] or agents.shape[-2:] != q.shape[-2:] or not means:
        raise ValueError(
            f"agents has shape {list(agents.shape)}; valid: [{q.shape[0]}, *spatial, {heads}, {channels}], the batch, "
            "heads and D of q, and at least one agent"
        )
    if agents.dtype != q.dtype:
        raise ValueError(f"agents has dtype {agents.dtype}; valid: that of q, {q.dtype}")
    if agents.device != q.device:
        raise ValueError(f"agents is on {agents.device}; valid: the device of q, {q.device}")
    for name, bias, shape in (
        ("agent_bias", agent_bias, [heads, means, keys]),
        ("query_bias", query_bias, [heads, tokens, means]),
    ):
        if bias is not None:
            check_parameter(name, bias, shape, q, "q")
    return *(x.flatten(1, -3) for x in (q, k, v, agents)), agent_bias, query_bias


agent_attention.operator = OPERATOR
agent_attention.describe = _describe
