"""Gated linear attention: linear attention whose state decays from token to token, by gates that depend on them."""

from torch import Tensor

from .. import dispatch
from ..autocast import cast
from ..checks import check_parameter
from ..neighborhood.checks import check_tensors
from .operator import OPERATOR, call

__all__ = ["gated_linear_attention"]


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    reverse_log_gate: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Read a decaying sum of k^T v at each token: h_t = diag(gate_t) h_{t-1} + k_t^T v_t and o_t = scale q_t h_t.

    Tokens are scanned in row-major order. With `reverse_log_gate` they are also scanned from last to first, with those
    gates, and the output is the mean of both scans; either includes the token itself. Time and memory grow with the
    tokens: there is a state for each chunk of them, none for each token, and the gradient makes them anew.

    Args:
        q, k, v: [B, *spatial, heads, D], one dtype and device; v may have another D. Under autocast they are cast to
            the autocast dtype.
        log_gate: natural logarithm of the gates, [B, *spatial, heads, D] as q, in the dtype of q or float32. At most 0;
            minus infinity forgets everything before the token. What is above 0 grows, and may overflow.
        reverse_log_gate: the same for the scan from last to first; None for no such scan.
        scale: factor of q; default D ** -0.5.

    Returns:
        [B, *spatial, heads, D of v] in the dtype of v, differentiable once. Sums are taken in float32 (float64 for
        float64 inputs).

    Raises:
        ValueError: an argument has a shape, dtype or device that is not valid.

    Source: arXiv 2312.06635; both ways over an image, arXiv 2405.18425.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return call(*_describe(q, k, v, log_gate, reverse_log_gate), scale, dispatch.requested())


def _describe(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    reverse_log_gate: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    q, k, v = cast(q, k, v)
    rank = check_tensors(q, k, v)
    if min(q.shape[1 : 1 + rank]) < 1:
        raise ValueError(f"q has shape {list(q.shape)}; valid: at least one token along each spatial axis")
    for name, gate in (("log_gate", log_gate), ("reverse_log_gate", reverse_log_gate)):
        if gate is not None:
            check_parameter(name, gate, q.shape, q, "q")
    return q, k, v, log_gate, reverse_log_gate


gated_linear_attention.operator = OPERATOR
gated_linear_attention.describe = _describe
