"""Forward kernels of fused neighborhood attention.

`attend_block` holds the whole neighbor block of a tile, and the table of logits, in registers, and walks over the
images of its slice of the batch. `attend_chunks` walks over the block in chunks with an online softmax: for large
windows and for float32.
"""

import triton
import triton.language as tl

from ..fused_rows import LN2, load_rows, logits, store_rows
from .fused_tiles import (
    block_places,
    block_start,
    exists,
    head_start,
    item_spot,
    map_piece,
    map_spot,
    offsets,
    own_places,
    tile_table,
    unpacked,
)


@triton.jit(do_not_specialize=["axes", "run", "batch", "images"])
def attend_block(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    table_ptr,
    out_ptr,
    lse_ptr,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    lse_strides,
    axes,
    run,
    batch,
    images,
    scale,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HELD: tl.constexpr,
    SHARED: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORED: tl.constexpr,
    RUNS: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output and log-sum-exp of piece `program_id(0)` of at most `run` tiles (one without RUNS), head `program_id(1)`,
    `images` images of slice `program_id(2)`.

    The block of COLUMNS keys is cut into CHUNKS (powers of two, from STARTS), so that it is padded little. HELD keeps
    the table in registers over the images; SHARED says that v has the strides of k.
    """
    axes = unpacked(axes, PLAIN)
    tile, count = map_piece(axes, tl.program_id(0), run)
    head = tl.program_id(1)
    residues, lengths, starts = map_spot(axes, tile)
    bases = block_start(axes, starts, lengths, False)
    i = tl.arange(0, ROWS)
    own = own_places(axes, starts, lengths, i)
    valid = exists(own, lengths)
    q_at = offsets(axes, own, residues, lengths, q_strides, WIDE)
    out_at = offsets(axes, own, residues, lengths, out_strides, WIDE)
    lse_at = offsets(axes, own, residues, lengths, lse_strides, WIDE)
    k_at = ()
    v_at = ()
    tables = ()
    for c in tl.static_range(len(CHUNKS)):
        j = STARTS[c] + tl.arange(0, CHUNKS[c])
        others = block_places(axes, bases, lengths, j)
        k_at = k_at + (offsets(axes, others, residues, lengths, k_strides, WIDE),)
        if not SHARED:
            v_at = v_at + (offsets(axes, others, residues, lengths, v_strides, WIDE),)
        if HELD:
            table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, False, HAS_BIAS, STORED)
            tables = tables + (table,)
    if SHARED:
        v_at = k_at
    first = tl.program_id(2) * images
    images = tl.minimum(images, batch - first)
    h = head.to(tl.int64)
    for item in range(0, count * images):
        image, along = item_spot(axes, item, first, images, RUNS)
        q = load_rows(head_start(q_ptr, q_strides, image, along, h), q_at, D, WIDTH)
        k_head = head_start(k_ptr, k_strides, image, along, h)
        v_head = head_start(v_ptr, v_strides, image, along, h)
        # A finite start keeps padding rows, which see no key, free of NaN.
        top = tl.full([ROWS], -1e30, tl.float32)
        scores = ()
        for c in tl.static_range(len(CHUNKS)):
            if HELD:
                table = tables[c]
            else:
                j = STARTS[c] + tl.arange(0, CHUNKS[c])
                table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, False, HAS_BIAS, STORED)
            s = logits(q, load_rows(k_head, k_at[c], D, WIDTH), scale, table, PRECISION)
            top = tl.maximum(top, tl.max(s, 1))
            scores = scores + (s,)
        total = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, WIDTH], tl.float32)
        for c in tl.static_range(len(CHUNKS)):
            p = tl.exp2(scores[c] - top[:, None])
            total += tl.sum(p, 1)
            v = load_rows(v_head, v_at[c], D, WIDTH)
            out = tl.dot(p.to(v.dtype), v, out, input_precision=PRECISION)
        total = tl.where(valid, total, 1.0)
        out_head = head_start(out_ptr, out_strides, image, along, h)
        store_rows(out_head, out_at, out / total[:, None], valid, D, WIDTH)
        lse_head = head_start(lse_ptr, lse_strides, image, along, h)
        tl.store(lse_head + lse_at, (top + tl.log2(total)) * LN2, mask=valid)


@triton.jit(do_not_specialize=["axes", "run", "batch", "images"])
def attend_chunks(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    table_ptr,
    out_ptr,
    lse_ptr,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    lse_strides,
    axes,
    run,
    batch,
    images,
    scale,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORED: tl.constexpr,
    RUNS: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `attend_block`, walking over the block of COLUMNS keys in chunks of CHUNK."""
    axes = unpacked(axes, PLAIN)
    tile, count = map_piece(axes, tl.program_id(0), run)
    head = tl.program_id(1)
    residues, lengths, starts = map_spot(axes, tile)
    bases = block_start(axes, starts, lengths, False)
    i = tl.arange(0, ROWS)
    own = own_places(axes, starts, lengths, i)
    valid = exists(own, lengths)
    q_at = offsets(axes, own, residues, lengths, q_strides, WIDE)
    out_at = offsets(axes, own, residues, lengths, out_strides, WIDE)
    lse_at = offsets(axes, own, residues, lengths, lse_strides, WIDE)
    first = tl.program_id(2) * images
    images = tl.minimum(images, batch - first)
    h = head.to(tl.int64)
    for item in range(0, count * images):
        image, along = item_spot(axes, item, first, images, RUNS)
        q = load_rows(head_start(q_ptr, q_strides, image, along, h), q_at, D, WIDTH)
        k_head = head_start(k_ptr, k_strides, image, along, h)
        v_head = head_start(v_ptr, v_strides, image, along, h)
        # A finite start keeps chunks that a row does not see free of NaN.
        top = tl.full([ROWS], -1e30, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, WIDTH], tl.float32)
        for c in range(0, COLUMNS, CHUNK):
            j = c + tl.arange(0, CHUNK)
            others = block_places(axes, bases, lengths, j)
            k = load_rows(k_head, offsets(axes, others, residues, lengths, k_strides, WIDE), D, WIDTH)
            v = load_rows(v_head, offsets(axes, others, residues, lengths, v_strides, WIDE), D, WIDTH)
            table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, False, HAS_BIAS, STORED)
            s = logits(q, k, scale, table, PRECISION)
            new_top = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - new_top[:, None])
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.sum(p, 1)
            out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
            top = new_top
        total = tl.where(valid, total, 1.0)
        out_head = head_start(out_ptr, out_strides, image, along, h)
        store_rows(out_head, out_at, out / total[:, None], valid, D, WIDTH)
        lse_head = head_start(lse_ptr, lse_strides, image, along, h)
        tl.store(lse_head + lse_at, (top + tl.log2(total)) * LN2, mask=valid)
