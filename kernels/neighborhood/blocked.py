"""Neighborhood attention by tiles: matrix products of a block of queries with the block of keys around it.

Made for CPUs, right on any device. A tile's additive table holds the bias inside each window and minus infinity
outside, so the mask costs no work of its own. Memory beyond the output is bounded by `CHUNK`, whatever the map.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from .geometry import Axis, Geometry
from .reference import outer
from .tiles import Pattern, Run, plan

# Pairs (query, key, head) in flight: a few MB of float32 logits, so that a chunk stays in the cache.
CHUNK = 1 << 20


def unsupported(direction: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output [B, *spatial, heads, D] and the log-sum-exp [B, *spatial, heads] in at least float32."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = v.new_empty(v.shape)
    lse = q.new_empty(q.shape[:-1], dtype=dtype)
    for runs in _runs(geometry):
        table = _table(runs, geometry, bias, q.device, dtype)
        for batch, part in _chunks(q, runs):
            queries, keys, values = (
                _queries(q[batch], part, dtype),
                _keys(k[batch], part, dtype),
                _keys(v[batch], part, dtype),
            )
            logits = torch.bmm(queries.mul_(scale), keys.transpose(1, 2))
            if table is not None:
                _by_head(logits, table).add_(table)
            top = logits.amax(-1, keepdim=True)
            weights = logits.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True)
            _scatter(out[batch], part, torch.bmm(weights, values).div_(total))
            _scatter(lse[batch].unsqueeze(-1), part, top.add_(total.log_()))
    return out, lse


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
    dtype = lse.dtype
    dq = q.new_empty(q.shape)
    dk, dv = (x.new_zeros(x.shape, dtype=dtype) for x in (k, v))
    dbias = None if bias is None else bias.new_zeros(bias.shape, dtype=dtype)
    shift = (dout.to(dtype) * out.to(dtype)).sum(-1).sub_(dlse)
    for runs in _runs(geometry):
        table = _table(runs, geometry, bias, q.device, dtype)
        dtable = None if bias is None else torch.zeros_like(table)
        for batch, part in _chunks(q, runs):
            queries, douts = _queries(q[batch], part, dtype), _queries(dout[batch], part, dtype)
            keys, values = _keys(k[batch], part, dtype), _keys(v[batch], part, dtype)
            norms, shifts = (_queries(x[batch].unsqueeze(-1), part, dtype) for x in (lse, shift))
            logits = torch.bmm(queries.mul_(scale), keys.transpose(1, 2)).sub_(norms)
            if table is not None:
                _by_head(logits, table).add_(table)
            weights = logits.exp_()
            _accumulate(dv[batch], part, torch.bmm(weights.transpose(1, 2), douts))
            dlogits = torch.bmm(douts, values.transpose(1, 2)).sub_(shifts).mul_(weights)
            if dtable is not None:
                dtable += _by_head(dlogits, table).sum(0)
            _scatter(dq[batch], part, torch.bmm(dlogits, keys).mul_(scale))
            _accumulate(dk[batch], part, torch.bmm(dlogits.transpose(1, 2), queries))
        if dtable is not None:
            entry, _ = _pairs(tuple(run.pattern for run in runs), geometry.window, q.device)
            dbias.flatten(1).index_add_(1, entry.flatten(), dtable.flatten(1))
    return dq, dk.to(k.dtype), dv.to(v.dtype), None if bias is None else dbias.to(bias.dtype)


def tile_size(axis: Axis, rank: int) -> int:
    """Return how many queries along an axis make a tile of a map of this rank.

    Small tiles have small halos and so waste fewer pairs, large ones multiply faster and make fewer copies. Measured on
    2 cores with AMX at windows 3 to 13 and D 32: whole groups up to 8, about 7 on medium maps, 4 on large ones.
    """
    longest = axis.group_length(0)
    if rank == 1:
        return 32
    if longest <= 8:
        return longest
    return 7 if rank == 2 and longest <= 32 else 4


def _runs(geometry: Geometry) -> Iterator[tuple[Run, ...]]:
    """Yield for each kind of tile of the map its run along every axis."""
    return product(*(plan(axis, tile_size(axis, len(geometry.axes))) for axis in geometry.axes))


def _table(runs: tuple[Run, ...], geometry: Geometry, bias: Tensor | None, device, dtype) -> Tensor | None:
    """Return what a tile adds to its logits, [heads or 1, queries, keys], or None where that is nothing."""
    entry, outside = _pairs(tuple(run.pattern for run in runs), geometry.window, device)
    if bias is None and outside is None:
        return None
    table = entry.new_zeros(1, *entry.shape, dtype=dtype) if bias is None else bias.to(dtype).flatten(1)[:, entry]
    return table if outside is None else table.masked_fill_(outside, float("-inf"))


@lru_cache(maxsize=1024)
def _pairs(patterns: tuple[Pattern, ...], window: tuple[int, ...], device) -> tuple[Tensor, Tensor | None]:
    """Return for each (query, key) of a tile its flat index into the bias table, and the pairs outside the window.

    The second is None when there are none.
    """
    entry = torch.zeros(1, 1, dtype=torch.long)
    inside = torch.ones(1, 1, dtype=torch.bool)
    for pattern, size in zip(patterns, window, strict=True):
        key = torch.arange(pattern.keys)
        offset = key - torch.arange(pattern.queries)[:, None] - pattern.lead
        first, end = torch.tensor(pattern.bounds).unbind(-1)
        entry = outer(entry * (2 * size - 1), (offset + size - 1).clamp(0, 2 * size - 2), torch.add)
        inside = outer(inside, (key >= first[:, None]) & (key < end[:, None]), torch.logical_and)
    return entry.to(device), None if inside.all() else ~inside.to(device)


def _chunks(q: Tensor, runs: tuple[Run, ...]) -> Iterator[tuple[slice, tuple[Run, ...]]]:
    """Split the batch, then the tiles of the first axis, so that no piece holds more than about CHUNK pairs."""
    first, rest = runs[0], runs[1:]
    pairs = q.shape[-2] * math.prod(run.pattern.queries * run.pattern.keys for run in runs)
    row = pairs * math.prod(run.groups * run.tiles for run in rest)
    images = max(1, CHUNK // (row * first.groups * first.tiles))
    tiles = min(first.tiles, max(1, CHUNK // row))
    groups = min(first.groups, max(1, CHUNK // (row * tiles)))
    for b, group, tile in product(
        range(0, q.shape[0], images), range(0, first.groups, groups), range(0, first.tiles, tiles)
    ):
        part = first.part(group, min(groups, first.groups - group), tile, min(tiles, first.tiles - tile))
        yield slice(b, b + images), (part, *rest)


def _view(x: Tensor, runs: tuple[Run, ...], keys: bool) -> Tensor:
    """View [B, *spatial, heads, D] as [B, (groups, tiles) for each axis, heads, tokens of a tile for each axis, D]."""
    offset, outer_size, outer_stride, inner_size, inner_stride = x.storage_offset(), [], [], [], []
    for run, stride in zip(runs, x.stride()[1:], strict=False):
        offset += (run.key if keys else run.query) * stride
        outer_size += [run.groups, run.tiles]
        outer_stride += [stride, run.step * stride]
        inner_size.append(run.pattern.keys if keys else run.pattern.queries)
        inner_stride.append(run.spacing * stride)
    size = (x.shape[0], *outer_size, x.shape[-2], *inner_size, x.shape[-1])
    return x.as_strided(size, (x.stride(0), *outer_stride, x.stride(-2), *inner_stride, x.stride(-1)), offset)


def _gather(x: Tensor, runs: tuple[Run, ...], keys: bool, dtype: torch.dtype) -> Tensor:
    view = _view(x, runs, keys)
    block = torch.empty(view.shape, dtype=dtype, device=x.device).copy_(view)
    rank = len(runs)
    return block.flatten(0, 2 * rank + 1).flatten(1, rank)


def _queries(x: Tensor, runs: tuple[Run, ...], dtype: torch.dtype) -> Tensor:
    """Copy the tiles of x as [tiles x heads, queries, D]."""
    return _gather(x, runs, False, dtype)


def _keys(x: Tensor, runs: tuple[Run, ...], dtype: torch.dtype) -> Tensor:
    """Copy the halos of x as [tiles x heads, keys, D]."""
    return _gather(x, runs, True, dtype)


def _by_head(x: Tensor, table: Tensor) -> Tensor:
    """View [tiles x heads, queries, keys] as [tiles, heads, queries, keys], to meet a table [heads, queries, keys]."""
    return x.view(-1, *table.shape)


def _scatter(x: Tensor, runs: tuple[Run, ...], tiles: Tensor) -> None:
    """Write tiles of queries into x; tiles never overlap."""
    view = _view(x, runs, False)
    view.copy_(tiles.view(view.shape))


def _accumulate(x: Tensor, runs: tuple[Run, ...], halos: Tensor) -> None:
    """Add halos of keys to x; neighbors share keys, so only every `overlap`-th are added at once, in a fixed order."""
    halos = halos.view(_view(x, runs, True).shape)
    for phases in product(*(range(run.overlap) for run in runs)):
        parts, index = [], [slice(None)]
        for run, phase in zip(runs, phases, strict=True):
            parts.append(run.part(0, run.groups, phase, run.tiles - phase, run.overlap))
            index += [slice(None), slice(phase, None, run.overlap)]
        _view(x, tuple(parts), True).add_(halos[tuple(index)])
