"""Agent attention: a few agent tokens gather from all keys and pass it on to all queries."""

from torch import Tensor

from ..autocast import cast
from .reference import forward

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
    """Attend in two steps through a few agent tokens."""
    q, k, v, agents = cast(q, k, v, agents)
    spatial = q.shape[1:-2]
    q, k, v, agents = (x.flatten(1, -3) for x in (q, k, v, agents))
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return forward(q, k, v, agents, agent_bias, query_bias, scale).unflatten(1, spatial)
