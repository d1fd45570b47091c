"""Linear attention: keys and values are reduced to a small state once, and every query reads it."""

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from .checks import check_form, check_tensors
from .operator import OPERATOR, call
from .reference import Form

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
    """Attend from every query to all keys, at a cost that grows linearly with the tokens.

    In each head, with feature maps phi of queries and psi of keys, and phi0 and psi0 the same before any rotation:

        S = sum_j psi(k_j) v_j^T,  s = sum_j psi0(k_j),  m = mean_j v_j,  t_i = phi0(q_i) . s
        y_i = alpha(t_i) phi(q_i)^T S + beta(t_i) m

    Args:
        q: [B, *spatial, heads, D].
        k: [B, *key_spatial, heads, D], and v [B, *key_spatial, heads, E], of any other map; one dtype and device.
            Under autocast they are cast to the autocast dtype.
        query_map, key_map: names of feature maps in `feature_maps.FEATURE_MAPS`; `key_map` defaults to `query_map`.
        normalizer: name of what makes alpha and beta in `feature_maps.NORMALIZERS`.
        query_parameter, key_parameter: tensors of the maps that take one, [heads, D] or [heads, D, F].
        key_weight: [B, *key_spatial, heads], factors of psi and psi0, as RALA has them.
        query_rotary, key_rotary: [2, tokens, D'], cosines and sines by which phi and psi are turned; neighbouring
            features are a pair and share an angle.
        scale: factor of psi and psi0.
        mean: whether psi and psi0 are also divided by the number of keys.
        power: exponent of the maps that have one.
        eps: small number of the normaliser.

    Returns:
        [B, *spatial, heads, E] in the dtype of v, differentiable once in every tensor. Features and sums are taken in
        float32 (float64 for float64 inputs); where float16 would overflow, it holds its largest number. The fused
        kernels of the focused map with a power of 2 or 3 take features of bfloat16 tensors in bfloat16, and in half
        precision want scaled entries of at most 3e5, whose powers they sum.

    Raises:
        ValueError: a name is unknown, or a tensor has a shape, dtype or device that does not fit.

    Source: Katharopoulos et al., arXiv 2006.16236, and the papers named at each map and normaliser.
    """
    spatial = q.shape[1:-2]
    tensors, form = _describe(
        q,
        k,
        v,
        query_map,
        key_map,
        normalizer,
        query_parameter=query_parameter,
        key_parameter=key_parameter,
        key_weight=key_weight,
        query_rotary=query_rotary,
        key_rotary=key_rotary,
        scale=scale,
        mean=mean,
        power=power,
        eps=eps,
    )
    return call(*tensors, *form, dispatch.requested())[0].unflatten(1, spatial)


def _describe(
    q,
    k,
    v,
    query_map="identity",
    key_map=None,
    normalizer="divide",
    *,
    query_parameter=None,
    key_parameter=None,
    key_weight=None,
    query_rotary=None,
    key_rotary=None,
    scale=1.0,
    mean=False,
    power=3.0,
    eps=1e-6,
) -> tuple[tuple[Tensor | None, ...], Form]:
    q, k, v = cast(q, k, v)
    form = Form(query_map, key_map or query_map, normalizer, float(scale), bool(mean), float(power), float(eps))
    check_form(form)
    of_maps = (query_parameter, key_parameter, query_rotary, key_rotary)
    check_tensors((q, k, v, key_weight, *of_maps), form)
    weight = None if key_weight is None else key_weight.flatten(1, -2)
    return (*(x.flatten(1, -3) for x in (q, k, v)), weight, *of_maps), form


linear_attention.operator = OPERATOR
linear_attention.describe = _describe
