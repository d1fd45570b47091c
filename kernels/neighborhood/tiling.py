"""How the fused kernels cut a map: tiles of tokens, the block of neighbors each needs, and classes of like tiles.

A tile is `tile` consecutive places of one dilation group along each axis. The queries of a tile see keys in a
contiguous block (window starts are monotone), and so do, inverted, the queries that see the keys of a tile. Away from
the borders the pattern of who sees whom repeats from tile to tile, so the few distinct patterns (classes) share one
table of logits.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from .geometry import Axis, Geometry


class TiledAxis(NamedTuple):
    """One spatial axis as the kernels read it; every field is a run-time integer.

    `ahead` and `behind` place a window: it starts `behind` places before the leader, which lies `ahead` places after
    the start of its stride group. `extent` is the length of the neighbor block of a tile; of the tiles of a group, the
    first `left` and the last `right` differ from those between; all but the last `tail` have blocks within the group.
    """

    length: int
    window: int
    stride: int
    dilation: int
    causal: int
    ahead: int
    behind: int
    tile: int
    extent: int
    left: int
    right: int
    tail: int


SHIFT = 5


def packed(axes: tuple[TiledAxis, TiledAxis, TiledAxis]) -> tuple[TiledAxis, TiledAxis, TiledAxis]:
    """Return the axes with the fields of y and x shifted and made odd.

    Triton compiles a variant for each argument that is 1 or a multiple of 16; packed sizes never are, so a kernel
    serves all maps. A unit z axis stays as it is: 2-D calls should not pay for it.
    """
    return axes[0], *(TiledAxis(*((field << SHIFT) + 17 for field in axis)) for axis in axes[1:])


class Tiling(NamedTuple):
    """The tiling of a map: its axes z, y, x (unit axes lead) with the number of tiles and of distinct patterns."""

    axes: tuple[TiledAxis, TiledAxis, TiledAxis]
    tiles: int
    classes: int  # 0 when the patterns do not repeat, and each program must build its own table

    @property
    def own(self) -> int:
        return math.prod(axis.tile for axis in self.axes)

    @property
    def block(self) -> int:
        return math.prod(axis.extent for axis in self.axes)

    def pieces(self, run: int) -> int:
        """Return the number of pieces of at most `run` like tiles, side by side along x."""
        x = self.axes[2]
        tiles = -(-x.length // (x.dilation * x.tile))
        ends = min(x.left + x.tail, tiles)
        return self.tiles // tiles * (ends - (ends - tiles) // run)


def padded_axes(geometry: Geometry) -> tuple[Axis, Axis, Axis]:
    """Return the axes of a call behind as many unit axes as make three."""
    return (Axis(1, 1),) * (3 - len(geometry.axes)) + geometry.axes


def first_query(axis: Axis, key: int) -> int:
    """Return a lower bound of the queries whose window holds `key` or a later key, exact where any does."""
    if axis.causal:
        return key
    leader = key - axis.window + 1 + axis.window // 2
    if key < axis.window:
        return 0
    return -(-max(leader - axis.stride // 2, 0) // axis.stride) * axis.stride


def _pattern(axis: Axis, start: int, tile: int, n: int, inverse: bool) -> tuple[int, tuple]:
    """Return the extent of the neighbor block of the tile at `start`, and all that its table depends on."""
    own = range(start, min(start + tile, n))
    if not inverse:
        bounds = [axis.bounds(place, n) for place in own]
        base = bounds[0][0]
        return bounds[-1][1] - base, (base - start, *((a - base, b - base) for a, b in bounds))
    base = end = first_query(axis, start)
    seen = []
    while end < n and axis.bounds(end, n)[0] <= own[-1]:
        seen.append(tuple(bound - start for bound in axis.bounds(end, n)))
        end += 1
    return end - base, (base - start, len(own), *seen)


@lru_cache(maxsize=4096)
def tile_axis(axis: Axis, tile: int, inverse: bool) -> tuple[TiledAxis, int, int]:
    """Return the tiled axis, its number of tiles over all groups and of classes (0: patterns do not repeat)."""
    longest = axis.group_length(0)
    lengths = {longest, axis.group_length(axis.dilation - 1)}
    period = math.lcm(tile, axis.stride)
    extent, left, right, ends = 1, 0, 0, []
    for n in lengths:
        # Patterns repeat with the period, so a long group needs only its two ends looked at.
        n -= max(0, (n - 4 * (axis.window + axis.stride + period)) // period) * period
        patterns = [_pattern(axis, start, tile, n, inverse) for start in range(0, n, tile)]
        extent = max(extent, *(length for length, _ in patterns))
        middle = patterns[len(patterns) // 2]
        alike = [pattern == middle for pattern in patterns]
        left = max(left, next(i for i in range(len(alike)) if all(alike[i : len(alike) // 2])))
        right = max(right, next(i for i in range(len(alike)) if all(alike[len(alike) // 2 : len(alike) - i])))
        ends.append((n, patterns))
    tail = right
    for n, patterns in ends:
        # Every block takes as many places as the longest: near the end of the group it may reach beyond.
        starts = (i * tile + pattern[0] for i, (_, pattern) in enumerate(patterns))
        tail = max(tail, sum(start + extent > n for start in starts))
    classes = sum(min(-(-n // tile), left + 1 + right) for n in lengths) if tile % axis.stride == 0 else 0
    ahead, behind = (axis.stride - 1, axis.window - 1) if axis.causal else (axis.stride // 2, axis.window // 2)
    tiled = TiledAxis(
        axis.length,
        axis.window,
        axis.stride,
        axis.dilation,
        int(axis.causal),
        ahead,
        behind,
        tile,
        extent,
        left,
        right,
        tail,
    )
    return tiled, -(-longest // tile) * axis.dilation, classes


@lru_cache(maxsize=1024)
def tile_map(geometry: Geometry, tile: tuple[int, int, int], inverse: bool = False) -> Tiling:
    """Cut a map into tiles of these sizes; `inverse` cuts keys and blocks of the queries that see them."""
    axes, tiles, classes = zip(
        *(tile_axis(axis, size, inverse) for axis, size in zip(padded_axes(geometry), tile, strict=True)), strict=True
    )
    return Tiling(axes, math.prod(tiles), math.prod(classes))
