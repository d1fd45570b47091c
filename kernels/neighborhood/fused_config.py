"""How the fused kernels cut each call: tile sizes, warps and pipeline stages, from measured configurations.

The rows were taken on one H200 for float16 and bfloat16; NOTES.md has the times.
"""

import math
from dataclasses import dataclass, replace

import torch

from .geometry import Geometry
from .tiling import padded_axes, tile_map


@dataclass(frozen=True)
class Config:
    """One kernel's cut: tile (z, y, x), the rows it is padded to, warps, stages, and programs to aim for.

    `registers` caps a thread's. `chunk` is the largest number of neighbors taken at a time. With `whole`, all chunks
    of a block are unrolled: no online softmax, and with `held` the tables of logits stay in registers over the images
    of the batch. `stored` reads the tables from memory rather than building them in each program. In the backward,
    `group` takes a whole dilation group in one program. `items` tiles or images at a time are added to sums kept in
    memory. `runs` lets a program walk along a row of like tiles when there are more tiles than programs to aim for.
    """

    tile: tuple[int, int, int]
    rows: int
    warps: int = 4
    stages: int = 2
    programs: int = 1024
    chunk: int = 128
    whole: bool = True
    held: bool = True
    stored: bool = True
    group: bool = False
    items: int = 1
    runs: bool = True
    registers: int | None = None


def cut_block(block: int, largest: int) -> tuple[int, ...]:
    """Return powers of two from `largest` down to 16 that cover a block of neighbors with least padding."""
    rest = -(-block // 16) * 16
    pieces = []
    while rest:
        pieces.append(min(largest, 1 << (rest.bit_length() - 1)))
        rest -= pieces[-1]
    return tuple(pieces)


def square_tile(axes, groups, rows: int) -> tuple[int, int, int]:
    """Return a tile of at most `rows` tokens: whole strides where they fit, wider along x than y than z."""
    tile = [axis.stride if axis.stride <= 8 else 1 for axis in axes]
    while math.prod(tile) > rows:
        tile[tile.index(max(tile))] = 1
    while True:
        wider = [axis for axis in (2, 1, 0) if tile[axis] < groups[axis] and 2 * math.prod(tile) <= rows]
        if not wider:
            return tuple(tile)
        tile[min(wider, key=lambda axis: tile[axis])] *= 2


def cut_tile(axes, groups, rows: int) -> tuple[int, int, int]:
    """Return a tile of at most `rows` tokens: 8 wide, or 7 where that cuts a row of the map with less waste."""
    if groups[0] > 1 or min(groups[1:]) < 7 or any(axis.stride > 1 for axis in axes):
        return square_tile(axes, groups, rows)
    wide = min((8, 7), key=lambda size: -(-groups[2] // size) * size)
    return 1, min(rows // 8 if rows < 64 or wide == 8 else 7, groups[1]), wide


def choose(kernel: str, geometry: Geometry, dtype: torch.dtype, width: int, bias: bool, batch: int) -> Config:
    """Return the configuration of `kernel` ("forward", "queries" or "keys") for a call with head dimension `width`."""
    axes = padded_axes(geometry)
    groups = tuple(axis.group_length(0) for axis in axes)
    if dtype == torch.float32:
        return Config(square_tile(axes, groups, 16), 16, warps=2, chunk=32 if width <= 64 else 16, whole=False)
    if math.prod(groups) <= 64 and width <= 64:
        programs = 264 if math.prod(axis.dilation for axis in axes) == 1 else 512
        return Config(groups, 64, stages=3, programs=programs, chunk=64, stored=False, group=kernel != "forward")
    narrow = cut_tile(axes, groups, 32)[2] == 7
    row = SMALL[kernel, "7" if narrow else "8", 32 if width <= 32 else 64]
    if kernel == "keys" and narrow and width <= 32 and max(groups) <= 14:
        row = Config(ANY, 64, stages=3, programs=528, chunk=64)
    elif width <= 32 and batch < 4 and not narrow:
        row = FEW_IMAGES[kernel]
    elif kernel == "queries" and width > 32 and bias:
        # The sums for dbias do not fit in registers beside wider heads.
        row = Config(ANY, 16, warps=1, stages=3, chunk=16, whole=False, programs=2640)
    tile = cut_tile(axes, groups, row.rows)
    if width <= 64 and tile_map(geometry, tile, kernel == "keys").block <= 176:
        return replace(row, tile=tile)
    row = LARGE[kernel, bias]
    if kernel == "forward" and bias and width <= 64:
        row = replace(row, registers=168)  # four more, and one program less fits on a multiprocessor
    return replace(row, tile=cut_tile(axes, groups, row.rows), stages=row.stages if width <= 128 else 2)


ANY = (0, 0, 0)
# Blocks of up to 176 neighbors, by kernel, width of the tile and head dimension.
SMALL = {
    ("forward", "8", 32): Config(ANY, 32, warps=2, stages=3, chunk=128),
    ("forward", "8", 64): Config(ANY, 32, warps=2, stages=2, chunk=128),
    ("forward", "7", 32): Config(ANY, 16, warps=1, stages=3, chunk=128),
    ("forward", "7", 64): Config(ANY, 16, warps=1, stages=2, chunk=128),
    ("queries", "8", 32): Config(ANY, 32, warps=2, stages=2, chunk=16, held=False, programs=1040),
    ("queries", "8", 64): Config(ANY, 32, warps=2, stages=2, chunk=16, held=False),
    ("queries", "7", 32): Config(ANY, 16, warps=1, stages=2, chunk=32),
    ("queries", "7", 64): Config(ANY, 16, warps=1, stages=2, chunk=32, held=False),
    ("keys", "8", 32): Config(ANY, 32, warps=2, stages=3, chunk=32, programs=2000),
    ("keys", "8", 64): Config(ANY, 32, warps=2, stages=3, chunk=32, whole=False, runs=False),
    ("keys", "7", 32): Config(ANY, 32, warps=2, stages=3, chunk=32),
    ("keys", "7", 64): Config(ANY, 32, warps=2, stages=2, chunk=32, held=False),
}
# The same where a pipeline over images has little to do.
FEW_IMAGES = {
    "forward": Config(ANY, 32, warps=2, stages=2, chunk=128, programs=1300),
    "queries": Config(ANY, 16, warps=1, stages=2, chunk=16, programs=1584),
    "keys": Config(ANY, 32, warps=2, stages=2, chunk=32, programs=792),
}
# Larger blocks, by kernel and whether there is a bias.
LARGE = {
    ("forward", False): Config(ANY, 64, stages=3, chunk=32, whole=False, runs=False),
    ("forward", True): Config(ANY, 64, stages=3, chunk=32, whole=False, runs=False),
    ("queries", False): Config(ANY, 64, stages=3, chunk=32, whole=False),
    ("queries", True): Config(ANY, 32, warps=2, stages=3, chunk=32, whole=False, programs=1040),
    ("keys", False): Config(ANY, 64, stages=3, chunk=32, whole=False, runs=False),
    ("keys", True): Config(ANY, 32, warps=2, stages=3, chunk=32, whole=False, runs=False),
}
