"""Neighborhood attention: every token attends to the window of tokens nearest to it."""

from collections.abc import Sequence

from torch import Tensor

from .. import autocast, dispatch
from .checks import check_bias, check_neighborhood, check_tensors
from .geometry import Geometry, geometry
from .operator import OPERATOR, call
from .packed import call as call_packed

__all__ = ["neighborhood_attention", "neighborhood_attention_packed"]


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from each token of a 1-D, 2-D or 3-D map to the `window` tokens nearest to it along each axis.

    At the borders the window slides inward, so every query sees the whole window. With dilation d a token attends only
    to tokens a multiple of d away, and windows are counted in such steps. With stride s, each s queries in a row share
    the window of their centre (of their last one on a causal axis). Semantics of NATTEN 0.21 plus the relative
    position bias.

    Args:
        q, k, v: [B, *spatial, heads, D], one dtype and device; v may have another D. Views of one packed projection are
            read in place. Under autocast they are cast to the autocast dtype.
        window, stride, dilation, causal: one value, or one for each spatial axis.
        bias: [heads, 2 * window - 1 for each axis], added to the logits at (key - query) / dilation + window - 1; in
            the dtype of q or float32. Needs odd windows.
        scale: factor of q . k; default D ** -0.5. The bias is not scaled.
        return_lse: also return the log-sum-exp of each query's logits.

    Returns:
        The output [B, *spatial, heads, D] in the dtype of v; with `return_lse` also [B, *spatial, heads] in float32
        (float64 for float64 inputs). Both are differentiable.

    Raises:
        ValueError: an argument is out of range; `window * dilation` must not exceed the map along any axis.

    Source: Hassani et al., arXiv 2204.07143 and 2209.15001; stride from arXiv 2504.16922.
    """
    q, k, v = autocast.cast(q, k, v)
    settings = _check(q, k, v, window, stride, dilation, causal, bias)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, lse = call(q, k, v, bias, *settings, scale, dispatch.requested())
    return (out, lse) if return_lse else out


def neighborhood_attention_packed(
    qkv: Tensor,
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Do as `neighborhood_attention` on q, k, v in one tensor, whose gradient is then written in one piece.

    Args:
        qkv: [B, *spatial, 3, heads, D], as a projection of all three gives it.

    Raises:
        ValueError: the third axis from the end is not 3, or as `neighborhood_attention`.
    """
    if qkv.dim() < 4 or qkv.shape[-3] != 3:
        raise ValueError(f"qkv has shape {list(qkv.shape)}; valid: [B, *spatial, 3, heads, D]")
    (qkv,) = autocast.cast(qkv)
    settings = _check(*qkv.unbind(-3), window, stride, dilation, causal, bias)
    scale = qkv.shape[-1] ** -0.5 if scale is None else float(scale)
    out, lse = call_packed(qkv, bias, *settings, scale, dispatch.requested())
    return (out, lse) if return_lse else out


def _check(q, k, v, window, stride=1, dilation=1, causal=False, bias=None) -> tuple[tuple, tuple, tuple, tuple]:
    rank = check_tensors(q, k, v)
    settings = check_neighborhood(q.shape[1 : 1 + rank], window, stride, dilation, causal)
    if bias is not None:
        check_bias(bias, q, settings[0])
    return settings


def _describe(
    q, k, v, window, stride=1, dilation=1, causal=False, bias=None, scale=None, return_lse=False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Geometry]:
    settings = _check(q, k, v, window, stride, dilation, causal, bias)
    return q, k, v, bias, geometry(q.shape[1:-2], *settings)


neighborhood_attention.operator = neighborhood_attention_packed.operator = OPERATOR
neighborhood_attention.describe = _describe
neighborhood_attention_packed.describe = lambda qkv, *args, **kwargs: _describe(*qkv.unbind(-3), *args, **kwargs)
