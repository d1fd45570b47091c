"""Window attention as its definition reads: cut the map into windows, softmax of all pairs, weighted sum, put back.

Runs on any device and dtype, in at least float32. This file is the specification that other backends are tested
against. A window's tokens lie apart in memory, so each tensor is copied once, into windows; the rest is in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def unsupported(
    direction: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, window: Sequence[int]
) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """View [B, *spatial, heads, D] as [B, windows along each axis, heads, tokens along each axis of a window, D]."""
    rank = len(window)
    for axis in reversed(range(rank)):
        x = x.unflatten(1 + axis, (x.shape[1 + axis] // window[axis], window[axis]))
    counts, places = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    return x.permute(0, *counts, 2 * rank + 1, *places, 2 * rank + 2)


def _cut(x: Tensor, window: Sequence[int]) -> Tensor:
    """Copy [B, *spatial, heads, D] as [B, W, heads, N, D] in at least float32."""
    view = windows(x, window)
    copy = torch.empty(view.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device).copy_(view)
    rank = len(window)
    return copy.flatten(-1 - rank, -2).flatten(1, rank)


def _join(x: Tensor, like: Tensor, window: Sequence[int]) -> Tensor:
    """Copy [B, W, heads, N, D] back into a map of the shape and dtype of `like`, [B, *spatial, heads, D]."""
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    view = windows(out, window)
    view.copy_(x.view(view.shape))
    return out


def _logits(q: Tensor, k: Tensor, bias: Tensor | None, mask: Tensor | None, scale: float) -> Tensor:
    """Return the logits [B, W, heads, N, N]."""
    logits = torch.matmul(q * scale, k.mT)
    if bias is not None:
        logits += bias
    if mask is not None:
        mask = mask[:, None]
        logits = logits.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else logits.add_(mask)
    return logits


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    window: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output [B, *spatial, heads, D] and the log-sum-exp [B, *spatial, heads] in at least float32."""
    logits = _logits(_cut(q, window), _cut(k, window), bias, mask, scale)
    top = logits.amax(-1, keepdim=True)
    if mask is not None:
        # A query that sees no key has the weights of exp(-inf) = 0, and a sum of 0.
        top = top.masked_fill_(top == float("-inf"), 0)
    weights = logits.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    out = torch.matmul(weights, _cut(v, window)).div_(total)
    lse = top.add_(total.log())
    if mask is not None:
        out = out.masked_fill_(total == 0, 0)
    lse_map = q.new_empty(*q.shape[:-1], 1, dtype=lse.dtype)
    return _join(out, v, window), _join(lse, lse_map, window).squeeze(-1)


def backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and bias, given those of the output and of the log-sum-exp."""
    queries, keys, values, douts = (_cut(x, window) for x in (q, k, v, dout))
    norms, dnorms = (_cut(x.unsqueeze(-1), window) for x in (lse, dlse))
    if mask is not None:
        unseen = norms == float("-inf")
        norms, dnorms = norms.masked_fill_(unseen, 0), dnorms.masked_fill_(unseen, 0)
    weights = _logits(queries, keys, bias, mask, scale).sub_(norms).exp_()
    dvalues = torch.matmul(weights.mT, douts)
    # d logits = weights * (d weights - sum(weights * d weights) + d lse)
    dweights = torch.matmul(douts, values.mT)
    mean = (weights * dweights).sum(-1, keepdim=True)
    dlogits = dweights.sub_(mean).add_(dnorms).mul_(weights)
    dq = _join(torch.matmul(dlogits, keys).mul_(scale), q, window)
    dk = _join(torch.matmul(dlogits.mT, queries).mul_(scale), k, window)
    dbias = None if bias is None else dlogits.sum((0, 1)).to(bias.dtype)
    return dq, dk, _join(dvalues, v, window), dbias
