"""Neighborhood attention as its definition reads: gather every query's keys, softmax, weighted sum.

Runs on any device and dtype; memory grows with tokens x window x channels. This file is the specification that the
other backends are tested against.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .geometry import Axis, Geometry


def unsupported(direction: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def axis_neighbors(axis: Axis, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each token of an axis its keys' positions, whether each exists, and its offset in group places.

    Returns:
        `position`, `exists`, `offset`: [L, window]. Only causal windows lack keys; there position and offset are 0.
    """
    position, exists, offset = [], [], []
    for token in range(axis.length):
        residue, place = token % axis.dilation, token // axis.dilation
        first, end = axis.bounds(place, axis.group_length(residue))
        keys = range(first, first + axis.window)
        position.append([residue + axis.dilation * key if key < end else 0 for key in keys])
        exists.append([key < end for key in keys])
        offset.append([key - place if key < end else 0 for key in keys])
    return tuple(torch.tensor(values, device=device) for values in (position, exists, offset))


def neighbors(geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each query its keys' flat positions, whether each exists, and its flat index into the bias table.

    Returns:
        `position`, `exists`, `entry`: [N, P] with N tokens and P the product of the windows, both row-major.
    """
    position = entry = torch.zeros(1, 1, dtype=torch.long, device=device)
    exists = torch.ones(1, 1, dtype=torch.bool, device=device)
    for axis in geometry.axes:
        axis_position, axis_exists, axis_offset = axis_neighbors(axis, device)
        position = outer(position * axis.length, axis_position, torch.add)
        entry = outer(entry * (2 * axis.window - 1), axis_offset + axis.window - 1, torch.add)
        exists = outer(exists, axis_exists, torch.logical_and)
    return position, exists, entry


def outer(left: Tensor, right: Tensor, combine: Callable) -> Tensor:
    """Combine [N, P] of one axis with [M, Q] of the next into [N * M, P * Q], both row-major."""
    both = combine(left[:, None, :, None], right[None, :, None, :])
    return both.reshape(left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])


def _tokens(x: Tensor) -> Tensor:
    """[B, *spatial, heads, D] -> [B, N, heads, D] in at least float32."""
    x = x.flatten(1, -3)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _probabilities(q, k, bias, scale, position, exists, entry) -> tuple[Tensor, Tensor]:
    """Return softmax weights [B, N, heads, P] and their log-sum-exp [B, N, heads]."""
    logits = torch.einsum("bnhd,bnphd->bnhp", q * scale, k[:, position])
    if bias is not None:
        logits = logits + bias.to(logits.dtype).flatten(1)[:, entry].transpose(0, 1)
    logits = logits.masked_fill(~exists[:, None, :], float("-inf"))
    lse = logits.logsumexp(-1)
    return (logits - lse[..., None]).exp(), lse


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output [B, *spatial, heads, D] and the log-sum-exp [B, *spatial, heads] in at least float32."""
    position, exists, entry = neighbors(geometry, q.device)
    weights, lse = _probabilities(_tokens(q), _tokens(k), bias, scale, position, exists, entry)
    out = torch.einsum("bnhp,bnphe->bnhe", weights, _tokens(v)[:, position])
    return out.to(v.dtype).reshape(v.shape).contiguous(), lse.reshape(q.shape[:-1]).contiguous()


def backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    geometry: Geometry,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and bias, given those of the output and of the log-sum-exp."""
    position, exists, entry = neighbors(geometry, q.device)
    tokens_q, tokens_k, tokens_v, tokens_dout = (_tokens(x) for x in (q, k, v, dout))
    weights, _ = _probabilities(tokens_q, tokens_k, bias, scale, position, exists, entry)
    dweights = torch.einsum("bnhe,bnphe->bnhp", tokens_dout, tokens_v[:, position])
    # d logits = weights * (d weights - sum(weights * d weights) + d lse)
    mean = (weights * dweights).sum(-1, keepdim=True)
    dlogits = weights * (dweights - mean + dlse.reshape_as(mean))
    dq = scale * torch.einsum("bnhp,bnphd->bnhd", dlogits, tokens_k[:, position])
    flat = position.flatten()
    dk = torch.zeros_like(tokens_k).index_add_(
        1, flat, scale * torch.einsum("bnhp,bnhd->bnphd", dlogits, tokens_q).flatten(1, 2)
    )
    dv = torch.zeros_like(tokens_v).index_add_(
        1, flat, torch.einsum("bnhp,bnhe->bnphe", weights, tokens_dout).flatten(1, 2)
    )
    dbias = None
    if bias is not None:
        per_pair = dlogits.sum(0).transpose(0, 1).flatten(1)
        dbias = torch.zeros_like(bias, dtype=per_pair.dtype).flatten(1)
        dbias = dbias.index_add_(1, entry.flatten(), per_pair).reshape(bias.shape).to(bias.dtype)
    dq, dk, dv = (d.to(x.dtype).reshape(x.shape).contiguous() for d, x in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, dbias
