"""Window attention: dense attention inside each of the many small windows that a map falls into."""

from collections.abc import Sequence

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from .checks import check_bias, check_mask, check_tensors, check_window
from .operator import OPERATOR, call

__all__ = ["window_attention"]


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | Sequence[int],
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from each token of a 1-D, 2-D or 3-D map to all tokens of its own window.

    The windows do not overlap and start at the map's first token. With N the tokens of a window and W the windows of a
    map, both counted row-major, bias and mask are added to the logits of every map of the batch. Shifted windows are
    the caller's roll of the map, with a mask for the windows that wrap around.

    Args:
        q, k, v: [B, *spatial, heads, D], one dtype and device; v may have another D. Views of one packed projection are
            read in place. Under autocast they are cast to the autocast dtype.
        window: one extent, or one for each spatial axis; each divides its axis.
        bias: [heads, N, N] (query, key), the same in every window; in the dtype of q or float32.
        mask: [W, N, N] (window, query, key), the same for every head: booleans, True where a query sees a key, or
            numbers to add, in the dtype of q or float32. A constant: it gets no gradient. A query that sees no key
            gives zeros.
        scale: factor of q . k; default D ** -0.5. Bias and mask are not scaled.
        return_lse: also return the log-sum-exp of each query's logits.

    Returns:
        The output [B, *spatial, heads, D] in the dtype of v; with `return_lse` also [B, *spatial, heads] in float32
        (float64 for float64 inputs). Both are differentiable.

    Raises:
        ValueError: an argument is out of range; a window must divide the map along every axis.

    Source: arXiv 2103.14030 (bias and mask); the high-frequency branch of arXiv 2205.13213.
    """
    q, k, v = cast(q, k, v)
    q, k, v, bias, mask, window = _describe(q, k, v, window, bias, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, lse = call(q, k, v, bias, mask, window, scale, dispatch.requested())
    return (out, lse) if return_lse else out


def _describe(
    q, k, v, window, bias=None, mask=None, scale=None, return_lse=False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, tuple[int, ...]]:
    rank = check_tensors(q, k, v)
    window = check_window(q.shape[1 : 1 + rank], window)
    if bias is not None:
        check_bias(bias, q, window)
    if mask is not None:
        check_mask(mask, q, window)
    return q, k, v, bias, mask, window


window_attention.operator = OPERATOR
window_attention.describe = _describe
