"""Device functions shared by the fused kernels: where a tile lies, its tokens, its neighbors, and their table of
logits.

Index `i` of a tile or block runs row-major over its z, y, x places. Places beyond the group are clamped to its last
one, so that every address is valid; the table is minus infinity there.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E
from .tiling import SHIFT as PACKED_SHIFT
from .tiling import TiledAxis

SHIFT = tl.constexpr(PACKED_SHIFT)


@triton.jit
def unpacked_axis(axis, PLAIN: tl.constexpr):
    return TiledAxis(
        axis.length >> SHIFT,
        axis.window >> SHIFT,
        1 if PLAIN else axis.stride >> SHIFT,
        1 if PLAIN else axis.dilation >> SHIFT,
        0 if PLAIN else axis.causal >> SHIFT,
        0 if PLAIN else axis.ahead >> SHIFT,
        axis.behind >> SHIFT,
        axis.tile >> SHIFT,
        axis.extent >> SHIFT,
        axis.left >> SHIFT,
        axis.right >> SHIFT,
        axis.tail >> SHIFT,
    )


@triton.jit
def unpacked(axes, PLAIN: tl.constexpr):
    """The axes z, y, x of `tiling.packed`; PLAIN says that none has a stride, a dilation or a causal window."""
    return axes[0], unpacked_axis(axes[1], PLAIN), unpacked_axis(axes[2], PLAIN)


@triton.jit
def axis_tiles(axis):
    """Number of tiles of an axis over all its groups; short groups get as many as the longest."""
    longest = (axis.length + axis.dilation - 1) // axis.dilation
    return (longest + axis.tile - 1) // axis.tile * axis.dilation


@triton.jit
def axis_spot(axis, index):
    """Residue and length of the group of tile `index` of an axis, and the tile's first place in it."""
    residue = index % axis.dilation
    return residue, (axis.length - residue + axis.dilation - 1) // axis.dilation, index // axis.dilation * axis.tile


@triton.jit
def first_key(axis, place, n):
    leader = tl.minimum(place // axis.stride * axis.stride + axis.ahead, n - 1)
    first = tl.maximum(leader - axis.behind, 0)
    # A causal window never starts past n - window: the minimum only binds on the others.
    return tl.minimum(first, n - axis.window)


@triton.jit
def first_query(axis, key):
    leader = key - axis.window + 1 + axis.window // 2
    group = (tl.maximum(leader - axis.ahead, 0) + axis.stride - 1) // axis.stride * axis.stride
    first = tl.where(key < axis.window, 0, group)
    return tl.where(axis.causal != 0, key, first)


@triton.jit
def window_of(axis, place, n):
    """First key of the window of the query at each place, and the number of its keys; none where there is no query."""
    first = first_key(axis, place, n)
    keys = tl.where(axis.causal != 0, place + 1 - first, axis.window)
    return first, tl.where(place < n, keys, 0)


@triton.jit
def within(value, first, size):
    """Whether first <= value < first + size, in one comparison."""
    return tl.cast(value - first, tl.uint32, bitcast=True) < tl.cast(size, tl.uint32, bitcast=True)


@triton.jit
def unravel(i, size_z, size_y, size_x):
    """Coordinates z, y, x of index `i`; divides through float32, exact below 2^20 and cheaper than by an integer."""
    row = ((i.to(tl.float32) + 0.5) * (1.0 / size_x.to(tl.float32))).to(tl.int32)
    # Most maps have a unit z axis, and this is computed in inner loops.
    if size_z == 1:
        z = (row >= size_y).to(tl.int32)
    else:
        z = ((row.to(tl.float32) + 0.5) * (1.0 / size_y.to(tl.float32))).to(tl.int32)
    return z, row - z * size_y, i - row * size_x


@triton.jit
def token(place, residue, dilation, n):
    return residue + dilation * tl.minimum(place, n - 1)


@triton.jit
def class_of(axis, index):
    """Class of tile `index` of an axis."""
    _, n, start = axis_spot(axis, index)
    longest = (axis.length + axis.dilation - 1) // axis.dilation
    tiles = (n + axis.tile - 1) // axis.tile
    classes = tl.minimum(tiles, axis.left + 1 + axis.right)
    t = tl.minimum(start // axis.tile, tiles - 1)
    own = tl.where(t < tiles - axis.right, tl.minimum(t, axis.left), classes - (tiles - t))
    long_tiles = (longest + axis.tile - 1) // axis.tile
    return own + tl.where(n < longest, tl.minimum(long_tiles, axis.left + 1 + axis.right), 0)


@triton.jit
def classes_of(axis):
    """Number of classes of an axis."""
    longest = (axis.length + axis.dilation - 1) // axis.dilation
    shortest = axis.length // axis.dilation
    most = axis.left + 1 + axis.right
    long_classes = tl.minimum((longest + axis.tile - 1) // axis.tile, most)
    short_classes = tl.minimum((shortest + axis.tile - 1) // axis.tile, most)
    return long_classes + tl.where(shortest < longest, short_classes, 0)


@triton.jit
def tile_of_class(axis, index):
    """A tile of an axis that has class `index`."""
    longest = (axis.length + axis.dilation - 1) // axis.dilation
    shortest = axis.length // axis.dilation
    most = axis.left + 1 + axis.right
    long_classes = tl.minimum((longest + axis.tile - 1) // axis.tile, most)
    is_short = index >= long_classes
    n = tl.where(is_short, shortest, longest)
    tiles = (n + axis.tile - 1) // axis.tile
    c = tl.where(is_short, index - long_classes, index)
    t = tl.where(c <= axis.left, c, tiles - (tl.minimum(tiles, most) - c))
    return t * axis.dilation + tl.where(is_short, axis.dilation - 1, 0)


@triton.jit
def map_spot(axes, tile):
    """Residues, group lengths and first places (z, y, x each) of tile number `tile` of a map."""
    tiles_y = axis_tiles(axes[1])
    tiles_x = axis_tiles(axes[2])
    rz, nz, sz = axis_spot(axes[0], tile // (tiles_y * tiles_x))
    ry, ny, sy = axis_spot(axes[1], tile // tiles_x % tiles_y)
    rx, nx, sx = axis_spot(axes[2], tile % tiles_x)
    return (rz, ry, rx), (nz, ny, nx), (sz, sy, sx)


@triton.jit
def map_piece(axes, piece, run):
    """Number of the first tile of a piece, and how many like tiles it holds: at most `run`, side by side along x.

    Tiles that are like no other are pieces of their own. Short groups have as many pieces as long ones, some empty.
    """
    x = axes[2]
    tiles = (x.length + x.dilation * x.tile - 1) // (x.dilation * x.tile)
    left = tl.minimum(x.left, tiles)
    tail = tl.minimum(x.tail, tiles - left)
    runs = (tiles - left - tail + run - 1) // run
    index = piece % ((left + runs + tail) * x.dilation)
    residue = index % x.dilation
    index = index // x.dilation
    own = ((x.length - residue + x.dilation - 1) // x.dilation + x.tile - 1) // x.tile
    end = left + tl.maximum(own - left - tail, 0)  # of the like tiles
    first = tl.where(
        index < left, index, tl.where(index < left + runs, left + (index - left) * run, end + index - left - runs)
    )
    alone = (index < left) | (index >= left + runs)
    count = tl.where(alone, (first < own).to(tl.int32), tl.maximum(tl.minimum(run, end - first), 0))
    row = piece // ((left + runs + tail) * x.dilation)
    return (row * tiles + tl.minimum(first, tiles - 1)) * x.dilation + residue, count


@triton.jit
def item_spot(axes, item, first, images, RUNS: tl.constexpr):
    """Image of an item of a piece, and how many tokens along x its tile lies from the first; images come fastest."""
    if RUNS:
        tile = item // images
        along = tile * (axes[2].tile * axes[2].dilation)
        return tl.cast(first + item - tile * images, tl.int64), tl.cast(along, tl.int64)
    return tl.cast(first + item, tl.int64), tl.cast(0, tl.int64)


@triton.jit
def head_start(ptr, strides, image, along, head):
    """Pointer to the first token of a head in an image, `along` tokens further along x."""
    return ptr + (image * strides[0] + along * strides[3] + head * strides[4])


@triton.jit
def map_class(axes, tile):
    """Class of tile number `tile` of a map."""
    tiles_y = axis_tiles(axes[1])
    tiles_x = axis_tiles(axes[2])
    z = class_of(axes[0], tile // (tiles_y * tiles_x))
    y = class_of(axes[1], tile // tiles_x % tiles_y)
    x = class_of(axes[2], tile % tiles_x)
    return (z * classes_of(axes[1]) + y) * classes_of(axes[2]) + x


@triton.jit
def map_tile_of_class(axes, index):
    """Number of a tile of a map that has class `index`."""
    classes_y = classes_of(axes[1])
    classes_x = classes_of(axes[2])
    z = tile_of_class(axes[0], index // (classes_y * classes_x))
    y = tile_of_class(axes[1], index // classes_x % classes_y)
    x = tile_of_class(axes[2], index % classes_x)
    return (z * axis_tiles(axes[1]) + y) * axis_tiles(axes[2]) + x


@triton.jit
def block_start(axes, starts, lengths, INVERSE: tl.constexpr):
    """First places of the neighbor block of the tile at `starts`: its keys, or inverse the queries that see it."""
    if INVERSE:
        return first_query(axes[0], starts[0]), first_query(axes[1], starts[1]), first_query(axes[2], starts[2])
    z = first_key(axes[0], starts[0], lengths[0])
    y = first_key(axes[1], starts[1], lengths[1])
    x = first_key(axes[2], starts[2], lengths[2])
    return z, y, x


@triton.jit
def own_places(axes, starts, lengths, i):
    """Places z, y, x of the tokens `i` of a tile; past the end of the group where there is no such token."""
    z, y, x = unravel(i, axes[0].tile, axes[1].tile, axes[2].tile)
    return tl.where(z < axes[0].tile, starts[0] + z, lengths[0]), starts[1] + y, starts[2] + x


@triton.jit
def block_places(axes, starts, lengths, j):
    """Places z, y, x of the tokens `j` of a neighbor block; past the end of the group where there is no such token."""
    z, y, x = unravel(j, axes[0].extent, axes[1].extent, axes[2].extent)
    return tl.where(z < axes[0].extent, starts[0] + z, lengths[0]), starts[1] + y, starts[2] + x


@triton.jit
def exists(places, lengths):
    return (places[0] < lengths[0]) & (places[1] < lengths[1]) & (places[2] < lengths[2])


@triton.jit
def offsets(axes, places, residues, lengths, strides, WIDE: tl.constexpr):
    """Element offsets of tokens within an image; in 64 bits when WIDE."""
    z = token(places[0], residues[0], axes[0].dilation, lengths[0])
    y = token(places[1], residues[1], axes[1].dilation, lengths[1])
    x = token(places[2], residues[2], axes[2].dilation, lengths[2])
    if WIDE:
        z, y, x = z.to(tl.int64), y.to(tl.int64), x.to(tl.int64)
    return z * strides[1] + y * strides[2] + x * strides[3]


@triton.jit
def bias_entry(axes, places):
    """Row-major position of z, y, x in a table of 2 * window - 1 entries an axis."""
    return (places[0] * (2 * axes[1].window - 1) + places[1]) * (2 * axes[2].window - 1) + places[2]


@triton.jit
def logit_table(axes, queries, keys, lengths, bias_ptr, HAS_BIAS: tl.constexpr):
    """What is added to each pair's logit, in log2 units: the bias inside the window, minus infinity outside.

    `queries` and `keys` are places that broadcast against each other; `bias_ptr` points at the head's table.
    """
    first_z, size_z = window_of(axes[0], queries[0], lengths[0])
    first_y, size_y = window_of(axes[1], queries[1], lengths[1])
    first_x, size_x = window_of(axes[2], queries[2], lengths[2])
    # Windows end within the group, so keys beyond it are in none.
    seen = within(keys[0], first_z, size_z) & within(keys[1], first_y, size_y) & within(keys[2], first_x, size_x)
    if HAS_BIAS:
        middle = bias_entry(axes, (axes[0].window - 1, axes[1].window - 1, axes[2].window - 1))
        entry = bias_entry(axes, keys) + middle - bias_entry(axes, queries)
        value = tl.load(bias_ptr + entry, mask=seen, other=0.0).to(tl.float32) * LOG2E
        return tl.where(seen, value, -float("inf"))
    return tl.where(seen, 0.0, -float("inf"))


@triton.jit
def tile_table(
    table_ptr,
    bias_ptr,
    axes,
    tile,
    head,
    i,
    j,
    COLUMNS: tl.constexpr,
    INVERSE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORED: tl.constexpr,
):
    """Rows `i` and columns `j` of the table of a tile: read from the stored tables, or built on the spot.

    Rows are queries and columns keys; inverse the other way round.
    """
    if STORED:
        index = map_class(axes, tile)
        if HAS_BIAS:
            index += head * (classes_of(axes[0]) * classes_of(axes[1]) * classes_of(axes[2]))
        rows = index * i.shape[0]
        row = (rows + i).to(tl.int64) * COLUMNS
        return tl.load(table_ptr + row[:, None] + j[None, :])
    _, lengths, starts = map_spot(axes, tile)
    z, y, x = own_places(axes, starts, lengths, i)
    own = (z[:, None], y[:, None], x[:, None])
    z, y, x = block_places(axes, block_start(axes, starts, lengths, INVERSE), lengths, j)
    others = (z[None, :], y[None, :], x[None, :])
    if HAS_BIAS:
        entries = (2 * axes[0].window - 1) * (2 * axes[1].window - 1) * (2 * axes[2].window - 1)
        bias_ptr += head.to(tl.int64) * entries
    if INVERSE:
        return logit_table(axes, others, own, lengths, bias_ptr, HAS_BIAS)
    return logit_table(axes, own, others, lengths, bias_ptr, HAS_BIAS)


@triton.jit(do_not_specialize=["axes"])
def build_tables(
    table_ptr,
    bias_ptr,
    axes,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    INVERSE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """Write the tables of all classes, [heads or 1, classes, ROWS, COLUMNS]; grid (classes, chunks, heads)."""
    axes = unpacked(axes, PLAIN)
    index = tl.program_id(0)
    head = tl.program_id(2)
    i = tl.arange(0, ROWS)
    j = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    tile = map_tile_of_class(axes, index)
    table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, INVERSE, HAS_BIAS, False)
    row = ((head * tl.num_programs(0) + index) * ROWS + i).to(tl.int64) * COLUMNS
    tl.store(table_ptr + row[:, None] + j[None, :], table)
