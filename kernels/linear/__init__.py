"""Linear attention: keys and values are reduced to a small state once, then every query reads it."""

from torch import Tensor

from ..autocast import cast
from .reference import Form, forward

__all__ = ["linear_attention"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_map: str = "identity",
    key_map: str | None = None,
    normalizer: str = "divide",
    *,
    query_parameter: Tensor | None = None,
    key_parameter: Tensor | None = None,
    key_weight: Tensor | None = None,
    query_rotary: Tensor | None = None,
    key_rotary: Tensor | None = None,
    scale: float = 1.0,
    mean: bool = False,
    power: float = 3.0,
    eps: float = 1e-6,
) -> Tensor:
    """Attend at a cost that grows linearly with the tokens."""
    q, k, v = cast(q, k, v)
    spatial = q.shape[1:-2]
    q, k, v = (x.flatten(1, -3) for x in (q, k, v))
    form = Form(query_map, key_map or query_map, normalizer, float(scale), mean, float(power), float(eps))
    out = forward(q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary, form)
    return out.unflatten(1, spatial)
