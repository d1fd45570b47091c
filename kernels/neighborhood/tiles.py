"""Tiles of queries over their halo of keys, along one axis: the plan that the blocked backend follows.

A tile is a run of consecutive queries of one dilation group; its halo is the run of keys that their windows cover.
Tiles whose windows lie alike inside their halos have one `Pattern`; most tiles of an axis do, only the borders differ.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from .geometry import Axis


@dataclass(frozen=True)
class Pattern:
    """How the windows of one tile lie in its halo.

    Attributes:
        queries, keys: sizes of the tile and its halo.
        lead: places from the first key to the first query.
        bounds: for each query the first key in the halo and one past the last.
    """

    queries: int
    keys: int
    lead: int
    bounds: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Run:
    """Evenly spaced tiles of one pattern: `groups` neighboring dilation groups with `tiles` tiles each.

    Attributes:
        query, key: positions on the axis of the very first query and key.
        step: tokens from one tile of a group to the next.
        spacing: tokens from one query (or key) of a tile to the next, the dilation.
    """

    pattern: Pattern
    query: int
    key: int
    groups: int
    tiles: int
    step: int
    spacing: int

    def part(self, group: int, groups: int, tile: int, tiles: int, stride: int = 1) -> "Run":
        """Return `groups` groups from `group` on and, of each, every `stride`-th of `tiles` tiles from `tile` on."""
        offset = group + tile * self.step
        return replace(
            self,
            query=self.query + offset,
            key=self.key + offset,
            groups=groups,
            tiles=-(-tiles // stride),
            step=self.step * stride,
        )

    @property
    def overlap(self) -> int:
        """How many consecutive halos of one group can share a key."""
        return min(self.tiles, -(-self.pattern.keys * self.spacing // self.step))


@lru_cache(maxsize=1024)
def plan(axis: Axis, size: int) -> tuple[Run, ...]:
    """Return the runs that cover an axis with tiles of at most `size` queries, every query once."""
    runs: list[Run] = []
    longer = axis.length % axis.dilation
    for first, count in ((0, longer), (longer, axis.dilation - longer)):
        if count and axis.group_length(first):
            runs += _group_runs(axis, size, first, count)
    return tuple(runs)


def _group_runs(axis: Axis, size: int, residue: int, groups: int) -> list[Run]:
    """Return the runs of the `groups` dilation groups from `residue` on, which are all of one length."""
    n = axis.group_length(residue)
    tiles = -(-n // size)
    short, longer = divmod(n, tiles)
    runs: list[Run] = []
    start = 0
    for tile in range(tiles):
        queries = short + (tile < longer)
        bounds = [axis.bounds(place, n) for place in range(start, start + queries)]
        key, end = bounds[0][0], bounds[-1][1]
        pattern = Pattern(queries, end - key, start - key, tuple((a - key, b - key) for a, b in bounds))
        position = residue + start * axis.dilation
        last = runs[-1] if runs else None
        if last and last.pattern == pattern and position == last.query + last.tiles * last.step:
            runs[-1] = replace(last, tiles=last.tiles + 1)
        else:
            at = residue + key * axis.dilation
            runs.append(Run(pattern, position, at, groups, 1, queries * axis.dilation, axis.dilation))
        start += queries
    return runs
