"""Backward kernels of fused neighborhood attention, keys: see fused_backward.py.

Tables here are inverse: rows are keys and columns the queries that see them.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E, load_rows, logits, store_rows
from .fused_backward import key_terms
from .fused_bias import fold_pairs
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


@triton.jit
def load_terms(ptr, at):
    """The two terms of each query; one load of pairs keeps the compiler from fetching each term in every warp."""
    return tl.split(tl.load(ptr + 2 * at[:, None] + tl.arange(0, 2)[None, :]))


@triton.jit(do_not_specialize=["axes", "run", "batch", "images"])
def differentiate_keys(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    table_ptr,
    terms_ptr,
    dout_ptr,
    dk_ptr,
    dv_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    grad_strides,
    lse_strides,
    axes,
    run,
    batch,
    images,
    scale,
    scale_log2,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HELD: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORED: tl.constexpr,
    RUNS: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv of piece `program_id(0)` of at most `run` tiles (one without RUNS), head `program_id(1)`, `images`
    images of slice `program_id(2)`.
    """
    axes = unpacked(axes, PLAIN)
    tile, count = map_piece(axes, tl.program_id(0), run)
    head = tl.program_id(1)
    residues, lengths, starts = map_spot(axes, tile)
    bases = block_start(axes, starts, lengths, True)
    i = tl.arange(0, ROWS)
    own = own_places(axes, starts, lengths, i)
    valid = exists(own, lengths)
    k_at = offsets(axes, own, residues, lengths, k_strides, WIDE)
    v_at = offsets(axes, own, residues, lengths, v_strides, WIDE)
    grad_at = offsets(axes, own, residues, lengths, grad_strides, WIDE)
    q_at = ()
    dout_at = ()
    lse_at = ()
    tables = ()
    for c in tl.static_range(len(CHUNKS)):
        j = STARTS[c] + tl.arange(0, CHUNKS[c])
        others = block_places(axes, bases, lengths, j)
        q_at = q_at + (offsets(axes, others, residues, lengths, q_strides, WIDE),)
        dout_at = dout_at + (offsets(axes, others, residues, lengths, dout_strides, WIDE),)
        lse_at = lse_at + (offsets(axes, others, residues, lengths, lse_strides, WIDE),)
        if HELD:
            table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, True, HAS_BIAS, STORED)
            tables = tables + (table,)
    first = tl.program_id(2) * images
    images = tl.minimum(images, batch - first)
    h = head.to(tl.int64)
    for item in range(0, count * images):
        image, along = item_spot(axes, item, first, images, RUNS)
        k = load_rows(head_start(k_ptr, k_strides, image, along, h), k_at, D, WIDTH)
        v = load_rows(head_start(v_ptr, v_strides, image, along, h), v_at, D, WIDTH)
        q_head = head_start(q_ptr, q_strides, image, along, h)
        dout_head = head_start(dout_ptr, dout_strides, image, along, h)
        terms = terms_ptr + 2 * (image * lse_strides[0] + along * lse_strides[3] + h)
        dk = tl.zeros([ROWS, WIDTH], tl.float32)
        dv = tl.zeros([ROWS, WIDTH], tl.float32)
        for c in tl.static_range(len(CHUNKS)):
            if HELD:
                table = tables[c]
            else:
                j = STARTS[c] + tl.arange(0, CHUNKS[c])
                table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, True, HAS_BIAS, STORED)
            q = load_rows(q_head, q_at[c], D, WIDTH)
            dout = load_rows(dout_head, dout_at[c], D, WIDTH)
            lse2, delta = load_terms(terms, lse_at[c])
            dk, dv = key_terms(k, v, q, dout, lse2, delta, table, dk, dv, scale_log2, PRECISION)
        store_rows(head_start(dk_ptr, grad_strides, image, along, h), grad_at, dk * scale, valid, D, WIDTH)
        store_rows(head_start(dv_ptr, grad_strides, image, along, h), grad_at, dv, valid, D, WIDTH)


@triton.jit(do_not_specialize=["axes", "run", "batch", "images"])
def differentiate_keys_chunks(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    table_ptr,
    terms_ptr,
    dout_ptr,
    dk_ptr,
    dv_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    grad_strides,
    lse_strides,
    axes,
    run,
    batch,
    images,
    scale,
    scale_log2,
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
    """As `differentiate_keys`, walking over the block of COLUMNS queries in chunks of CHUNK."""
    axes = unpacked(axes, PLAIN)
    tile, count = map_piece(axes, tl.program_id(0), run)
    head = tl.program_id(1)
    residues, lengths, starts = map_spot(axes, tile)
    bases = block_start(axes, starts, lengths, True)
    i = tl.arange(0, ROWS)
    own = own_places(axes, starts, lengths, i)
    valid = exists(own, lengths)
    k_at = offsets(axes, own, residues, lengths, k_strides, WIDE)
    v_at = offsets(axes, own, residues, lengths, v_strides, WIDE)
    grad_at = offsets(axes, own, residues, lengths, grad_strides, WIDE)
    first = tl.program_id(2) * images
    images = tl.minimum(images, batch - first)
    h = head.to(tl.int64)
    for item in range(0, count * images):
        image, along = item_spot(axes, item, first, images, RUNS)
        k = load_rows(head_start(k_ptr, k_strides, image, along, h), k_at, D, WIDTH)
        v = load_rows(head_start(v_ptr, v_strides, image, along, h), v_at, D, WIDTH)
        q_head = head_start(q_ptr, q_strides, image, along, h)
        dout_head = head_start(dout_ptr, dout_strides, image, along, h)
        terms = terms_ptr + 2 * (image * lse_strides[0] + along * lse_strides[3] + h)
        dk = tl.zeros([ROWS, WIDTH], tl.float32)
        dv = tl.zeros([ROWS, WIDTH], tl.float32)
        for c in range(0, COLUMNS, CHUNK):
            j = c + tl.arange(0, CHUNK)
            others = block_places(axes, bases, lengths, j)
            q = load_rows(q_head, offsets(axes, others, residues, lengths, q_strides, WIDE), D, WIDTH)
            dout = load_rows(dout_head, offsets(axes, others, residues, lengths, dout_strides, WIDE), D, WIDTH)
            lse_at = offsets(axes, others, residues, lengths, lse_strides, WIDE)
            lse2, delta = load_terms(terms, lse_at)
            table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, True, HAS_BIAS, STORED)
            dk, dv = key_terms(k, v, q, dout, lse2, delta, table, dk, dv, scale_log2, PRECISION)
        store_rows(head_start(dk_ptr, grad_strides, image, along, h), grad_at, dk * scale, valid, D, WIDTH)
        store_rows(head_start(dv_ptr, grad_strides, image, along, h), grad_at, dv, valid, D, WIDTH)


@triton.jit(do_not_specialize=["axes", "batch", "images"])
def differentiate_group(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    table_ptr,
    lse_ptr,
    dout_ptr,
    dlse_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    pairs_ptr,
    partial_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    grad_strides,
    lse_strides,
    axes,
    batch,
    images,
    scale,
    scale_log2,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FOLD: tl.constexpr,
    STORED: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, dk, dv and partial sums for dbias where a tile is a whole dilation group of at most ROWS tokens."""
    axes = unpacked(axes, PLAIN)
    tile = tl.program_id(0)
    head = tl.program_id(1)
    h = head.to(tl.int64)
    residues, lengths, starts = map_spot(axes, tile)
    i = tl.arange(0, ROWS)
    own = own_places(axes, starts, lengths, i)
    valid = exists(own, lengths)
    q_at = offsets(axes, own, residues, lengths, q_strides, WIDE)
    k_at = offsets(axes, own, residues, lengths, k_strides, WIDE)
    v_at = offsets(axes, own, residues, lengths, v_strides, WIDE)
    dout_at = offsets(axes, own, residues, lengths, dout_strides, WIDE)
    grad_at = offsets(axes, own, residues, lengths, grad_strides, WIDE)
    lse_at = offsets(axes, own, residues, lengths, lse_strides, WIDE)
    table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, i, ROWS, False, HAS_BIAS, STORED)
    total = tl.zeros([ROWS, ROWS], tl.float32)
    first = tl.program_id(2) * images
    for b in range(first, tl.minimum(first + images, batch)):
        at = tl.cast(b, tl.int64)
        lse_head = at * lse_strides[0] + h
        q = load_rows(q_ptr + at * q_strides[0] + h * q_strides[4], q_at, D, WIDTH)
        k = load_rows(k_ptr + at * k_strides[0] + h * k_strides[4], k_at, D, WIDTH)
        v = load_rows(v_ptr + at * v_strides[0] + h * v_strides[4], v_at, D, WIDTH)
        dout = load_rows(dout_ptr + at * dout_strides[0] + h * dout_strides[4], dout_at, D, WIDTH)
        lse2 = tl.load(lse_ptr + lse_head + lse_at) * LOG2E
        p = tl.exp2(logits(q, k, scale_log2, table, PRECISION) - lse2[:, None])
        dv = tl.dot(tl.trans(p.to(dout.dtype)), dout, input_precision=PRECISION)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        # All of the window is at hand, so this needs no output: see fused_backward.py.
        delta = tl.sum(p * dp, 1) - tl.load(dlse_ptr + lse_head + lse_at)
        ds = p * (dp - delta[:, None])
        if HAS_BIAS:
            total += ds
        ds = ds.to(q.dtype)
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        dq = tl.dot(ds, k, input_precision=PRECISION)
        grad_head = at * grad_strides[0] + h * grad_strides[4]
        store_rows(dq_ptr + grad_head, grad_at, dq * scale, valid, D, WIDTH)
        store_rows(dk_ptr + grad_head, grad_at, dk * scale, valid, D, WIDTH)
        store_rows(dv_ptr + grad_head, grad_at, dv, valid, D, WIDTH)
    if HAS_BIAS:
        slot = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        slot = h * (tl.num_programs(0) * tl.num_programs(2)) + slot
        pairs = pairs_ptr + slot * ROWS * ROWS
        tl.store(pairs + i[:, None] * ROWS + i[None, :], total)
        entries = (2 * axes[0].window - 1) * (2 * axes[1].window - 1) * (2 * axes[2].window - 1)
        fold_pairs(pairs, partial_ptr + slot * entries, axes, tile, True, False, ROWS, ROWS, FOLD)
