"""The gradient of the bias inside the fused kernels: from sums over pairs of one tile to sums over offsets.

A program sums d logits over its images pair by pair, [queries, keys of the block], then folds pairs of equal offset
together here and writes its own row of partial sums. A last sum over those rows, in fixed order, gives the gradient: no
atomics, so the result is the same every time.
"""

import triton
import triton.language as tl

from .fused_tiles import block_start, map_spot, own_places, unravel, within

BINS = tl.constexpr(256)


@triton.jit
def fold_pairs(
    pairs_ptr, partial_ptr, axes, tile, filled, adds, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FOLD: tl.constexpr
):
    """Sum [ROWS, COLUMNS] pairs of a tile, none unless `filled`, by offset into `partial_ptr`, on top of it when
    `adds`; FOLD rows at a time.
    """
    # The pairs were written by other threads of this program.
    tl.debug_barrier()
    _, lengths, starts = map_spot(axes, tile)
    bases = block_start(axes, starts, lengths, False)
    size_y = 2 * axes[1].window - 1
    size_x = 2 * axes[2].window - 1
    entries = (2 * axes[0].window - 1) * size_y * size_x
    for at in range(0, entries, BINS):
        entry = at + tl.arange(0, BINS)
        z, y, x = unravel(entry, 2 * axes[0].window - 1, size_y, size_x)
        total = tl.zeros([BINS], tl.float32)
        for row in range(0, ROWS, FOLD):
            i = row + tl.arange(0, FOLD)
            own = own_places(axes, starts, lengths, i)
            key_z = (own[0] - bases[0] - axes[0].window + 1)[:, None] + z[None, :]
            key_y = (own[1] - bases[1] - axes[1].window + 1)[:, None] + y[None, :]
            key_x = (own[2] - bases[2] - axes[2].window + 1)[:, None] + x[None, :]
            # Pairs outside the window were summed as zeros, so it is enough to stay inside the block.
            held = within(key_z, 0, axes[0].extent) & within(key_y, 0, axes[1].extent)
            held = held & within(key_x, 0, axes[2].extent) & ((entry < entries) & filled)[None, :]
            j = (key_z * axes[1].extent + key_y) * axes[2].extent + key_x
            total += tl.sum(tl.load(pairs_ptr + i[:, None] * COLUMNS + j, mask=held, other=0.0), 0)
        total += tl.load(partial_ptr + entry, mask=(entry < entries) & adds, other=0.0)
        tl.store(partial_ptr + entry, total, mask=entry < entries)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["programs", "entries"])
def sum_partial(partial_ptr, dbias_ptr, programs, entries, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum [heads, programs, entries] over programs, in a fixed order; grid (entries / COLUMNS, heads)."""
    head = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(0, programs, ROWS):
        row = at + tl.arange(0, ROWS)
        place = (head * programs + row)[:, None] * entries + entry[None, :]
        total += tl.load(partial_ptr + place, mask=(row < programs)[:, None] & (entry < entries)[None, :], other=0.0)
    tl.store(dbias_ptr + head * entries + entry, tl.sum(total, 0), mask=entry < entries)
