"""Backward kernels of fused neighborhood attention.

With P = exp(logits - lse) and delta = rowsum(dout * out) - dlse: d logits = P * (dout . v - delta). As out = P v,
rowsum(dout * out) is also rowsum(P * (dout . v)), which does not suffer from the rounding of out: the gradient of a
small bias table needs that (EXACT), since little may be left of its terms once they are summed.

`differentiate_queries` gives dq, delta and the sums for dbias, tile of queries by tile; `differentiate_keys` gives dk
and dv, tile of keys by tile, each from the queries that see it; `differentiate_group` does all of it at once where a
dilation group fits in one tile. Each output element is written once, by one program.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E, load_rows, logits, store_rows
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
def query_terms(q, k, v, dout, lse2, delta, table, dq, scale, PRECISION: tl.constexpr):
    """d logits of a chunk of keys, and dq (without the scale) with that chunk's part added."""
    p = tl.exp2(logits(q, k, scale, table, PRECISION) - lse2[:, None])
    dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - delta[:, None])
    return ds, tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def delta_terms(q, k, v, dout, lse2, table, scale, PRECISION: tl.constexpr):
    """A chunk's part of rowsum(P * (dout . v))."""
    p = tl.exp2(logits(q, k, scale, table, PRECISION) - lse2[:, None])
    return tl.sum(p * tl.dot(dout, tl.trans(v), input_precision=PRECISION), 1)


@triton.jit
def key_terms(k, v, q, dout, lse2, delta, table, dk, dv, scale, PRECISION: tl.constexpr):
    """dk (without the scale) and dv with a chunk of queries' part added."""
    p = tl.exp2(logits(k, q, scale, table, PRECISION) - lse2[None, :])
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def no_sums(i, CHUNKS: tl.constexpr):
    """Zeros [rows, chunk] for each chunk."""
    sums = ()
    for c in tl.static_range(len(CHUNKS)):
        sums = sums + (tl.zeros_like(i[:, None] + tl.arange(0, CHUNKS[c])[None, :]).to(tl.float32),)
    return sums


@triton.jit
def row_delta(dout, out, dlse):
    return tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1) - dlse


@triton.jit(do_not_specialize=["axes", "run", "pieces", "each", "batch", "images"])
def differentiate_queries(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    table_ptr,
    out_ptr,
    lse_ptr,
    dout_ptr,
    dlse_ptr,
    terms_ptr,
    dq_ptr,
    pairs_ptr,
    partial_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    out_strides,
    grad_strides,
    lse_strides,
    axes,
    run,
    pieces,
    each,
    batch,
    images,
    scale,
    scale_log2,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HELD: tl.constexpr,
    SHARED: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    STORED: tl.constexpr,
    RUNS: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, the terms of each query that `differentiate_keys` needs, and partial sums for dbias.

    `terms_ptr` is [B, *spatial, heads, 2]: the log-sum-exp in log2 units, and delta.

    Program (p, head, slice) of P takes pieces p * each and on, of at most `run` tiles (one without RUNS). The sums over
    the images and tiles of a piece stay in registers; then they are folded, through `pairs_ptr`, scratch of [programs,
    ROWS, COLUMNS] floats, into `partial_ptr`, [heads, slices * P, offsets]. CHUNKS and flags as in `attend_block`.
    """
    axes = unpacked(axes, PLAIN)
    head = tl.program_id(1)
    h = head.to(tl.int64)
    slot = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    slot = h * (tl.num_programs(0) * tl.num_programs(2)) + slot
    i = tl.arange(0, ROWS)
    first = tl.program_id(2) * images
    images = tl.minimum(images, batch - first)
    first_piece = tl.program_id(0) * each
    for piece in range(first_piece, tl.minimum(first_piece + each, pieces)):
        tile, count = map_piece(axes, piece, run)
        residues, lengths, starts = map_spot(axes, tile)
        bases = block_start(axes, starts, lengths, False)
        own = own_places(axes, starts, lengths, i)
        valid = exists(own, lengths)
        q_at = offsets(axes, own, residues, lengths, q_strides, WIDE)
        dout_at = offsets(axes, own, residues, lengths, dout_strides, WIDE)
        out_at = offsets(axes, own, residues, lengths, out_strides, WIDE)
        dq_at = offsets(axes, own, residues, lengths, grad_strides, WIDE)
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
        if HAS_BIAS:
            sums = no_sums(i, CHUNKS)
        for item in range(0, count * images):
            image, along = item_spot(axes, item, first, images, RUNS)
            q = load_rows(head_start(q_ptr, q_strides, image, along, h), q_at, D, WIDTH)
            dout = load_rows(head_start(dout_ptr, dout_strides, image, along, h), dout_at, D, WIDTH)
            k_head = head_start(k_ptr, k_strides, image, along, h)
            v_head = head_start(v_ptr, v_strides, image, along, h)
            lse_head = image * lse_strides[0] + along * lse_strides[3] + h
            lse2 = tl.load(lse_ptr + lse_head + lse_at) * LOG2E
            if EXACT:
                delta = -tl.load(dlse_ptr + lse_head + lse_at)
                for c in tl.static_range(len(CHUNKS)):
                    if HELD:
                        table = tables[c]
                    else:
                        j = STARTS[c] + tl.arange(0, CHUNKS[c])
                        table = tile_table(
                            table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, False, HAS_BIAS, STORED
                        )
                    k = load_rows(k_head, k_at[c], D, WIDTH)
                    v = load_rows(v_head, v_at[c], D, WIDTH)
                    delta += delta_terms(q, k, v, dout, lse2, table, scale_log2, PRECISION)
            else:
                out = load_rows(head_start(out_ptr, out_strides, image, along, h), out_at, D, WIDTH)
                delta = row_delta(dout, out, tl.load(dlse_ptr + lse_head + lse_at))
            term_at = terms_ptr + 2 * (lse_head + lse_at)
            tl.store(term_at, lse2, mask=valid)
            tl.store(term_at + 1, delta, mask=valid)
            dq = tl.zeros([ROWS, WIDTH], tl.float32)
            added = ()
            for c in tl.static_range(len(CHUNKS)):
                if HELD:
                    table = tables[c]
                else:
                    j = STARTS[c] + tl.arange(0, CHUNKS[c])
                    table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, False, HAS_BIAS, STORED)
                k = load_rows(k_head, k_at[c], D, WIDTH)
                v = load_rows(v_head, v_at[c], D, WIDTH)
                ds, dq = query_terms(q, k, v, dout, lse2, delta, table, dq, scale_log2, PRECISION)
                if HAS_BIAS:
                    added = added + (sums[c] + ds,)
            if HAS_BIAS:
                sums = added
            store_rows(head_start(dq_ptr, grad_strides, image, along, h), dq_at, dq * scale, valid, D, WIDTH)
        if HAS_BIAS:
            pairs = pairs_ptr + slot * ROWS * COLUMNS
            for c in tl.static_range(len(CHUNKS)):
                j = STARTS[c] + tl.arange(0, CHUNKS[c])
                tl.store(pairs + i[:, None] * COLUMNS + j[None, :], sums[c])
            entries = (2 * axes[0].window - 1) * (2 * axes[1].window - 1) * (2 * axes[2].window - 1)
            adds = piece > first_piece
            fold_pairs(pairs, partial_ptr + slot * entries, axes, tile, True, adds, ROWS, COLUMNS, FOLD)


@triton.jit(do_not_specialize=["axes", "run", "pieces", "each", "batch", "images"])
def differentiate_queries_chunks(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    table_ptr,
    out_ptr,
    lse_ptr,
    dout_ptr,
    dlse_ptr,
    terms_ptr,
    dq_ptr,
    pairs_ptr,
    partial_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    out_strides,
    grad_strides,
    lse_strides,
    axes,
    run,
    pieces,
    each,
    batch,
    images,
    scale,
    scale_log2,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ITEMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FOLD: tl.constexpr,
    EXACT: tl.constexpr,
    STORED: tl.constexpr,
    RUNS: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `differentiate_queries`, walking over the block of COLUMNS keys in chunks; the sums stay in the scratch, where
    ITEMS images or tiles at a time are added.
    """
    axes = unpacked(axes, PLAIN)
    head = tl.program_id(1)
    h = head.to(tl.int64)
    slot = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    slot = h * (tl.num_programs(0) * tl.num_programs(2)) + slot
    if HAS_BIAS:
        pairs = pairs_ptr + slot * ROWS * COLUMNS
    i = tl.arange(0, ROWS)
    first = tl.program_id(2) * images
    images = tl.minimum(images, batch - first)
    first_piece = tl.program_id(0) * each
    for piece in range(first_piece, tl.minimum(first_piece + each, pieces)):
        tile, count = map_piece(axes, piece, run)
        residues, lengths, starts = map_spot(axes, tile)
        bases = block_start(axes, starts, lengths, False)
        own = own_places(axes, starts, lengths, i)
        valid = exists(own, lengths)
        q_at = offsets(axes, own, residues, lengths, q_strides, WIDE)
        dout_at = offsets(axes, own, residues, lengths, dout_strides, WIDE)
        out_at = offsets(axes, own, residues, lengths, out_strides, WIDE)
        dq_at = offsets(axes, own, residues, lengths, grad_strides, WIDE)
        lse_at = offsets(axes, own, residues, lengths, lse_strides, WIDE)
        items = count * images
        for begin in range(0, items, ITEMS):
            q = ()
            dout = ()
            lse2 = ()
            delta = ()
            k_head = ()
            v_head = ()
            dq = ()
            for t in tl.static_range(ITEMS):
                # The last one again where there is no other.
                image, along = item_spot(axes, tl.minimum(begin + t, items - 1), first, images, RUNS)
                query = load_rows(head_start(q_ptr, q_strides, image, along, h), q_at, D, WIDTH)
                row = load_rows(head_start(dout_ptr, dout_strides, image, along, h), dout_at, D, WIDTH)
                keys = head_start(k_ptr, k_strides, image, along, h)
                values = head_start(v_ptr, v_strides, image, along, h)
                lse_head = image * lse_strides[0] + along * lse_strides[3] + h
                row_lse2 = tl.load(lse_ptr + lse_head + lse_at) * LOG2E
                if EXACT:
                    difference = -tl.load(dlse_ptr + lse_head + lse_at)
                    for c in range(0, COLUMNS, CHUNK):
                        j = c + tl.arange(0, CHUNK)
                        others = block_places(axes, bases, lengths, j)
                        k = load_rows(keys, offsets(axes, others, residues, lengths, k_strides, WIDE), D, WIDTH)
                        v = load_rows(values, offsets(axes, others, residues, lengths, v_strides, WIDE), D, WIDTH)
                        table = tile_table(
                            table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, False, HAS_BIAS, STORED
                        )
                        difference += delta_terms(query, k, v, row, row_lse2, table, scale_log2, PRECISION)
                else:
                    out = load_rows(head_start(out_ptr, out_strides, image, along, h), out_at, D, WIDTH)
                    difference = row_delta(row, out, tl.load(dlse_ptr + lse_head + lse_at))
                term_at = terms_ptr + 2 * (lse_head + lse_at)
                tl.store(term_at, row_lse2, mask=valid)
                tl.store(term_at + 1, difference, mask=valid)
                q = q + (query,)
                dout = dout + (row,)
                lse2 = lse2 + (row_lse2,)
                delta = delta + (difference,)
                k_head = k_head + (keys,)
                v_head = v_head + (values,)
                dq = dq + (tl.zeros([ROWS, WIDTH], tl.float32),)
            for c in range(0, COLUMNS, CHUNK):
                j = c + tl.arange(0, CHUNK)
                others = block_places(axes, bases, lengths, j)
                k_at = offsets(axes, others, residues, lengths, k_strides, WIDE)
                v_at = offsets(axes, others, residues, lengths, v_strides, WIDE)
                table = tile_table(table_ptr, bias_ptr, axes, tile, head, i, j, COLUMNS, False, HAS_BIAS, STORED)
                total = tl.zeros([ROWS, CHUNK], tl.float32)
                added = ()
                for t in tl.static_range(ITEMS):
                    k = load_rows(k_head[t], k_at, D, WIDTH)
                    v = load_rows(v_head[t], v_at, D, WIDTH)
                    ds, part = query_terms(q[t], k, v, dout[t], lse2[t], delta[t], table, dq[t], scale_log2, PRECISION)
                    added = added + (part,)
                    if t == 0:
                        total = ds
                    else:
                        total += tl.where(begin + t < items, ds, 0.0)
                dq = added
                if HAS_BIAS:
                    pair = pairs + i[:, None] * COLUMNS + j[None, :]
                    if begin > 0:
                        total += tl.load(pair)
                    tl.store(pair, total)
            for t in tl.static_range(ITEMS):
                image, along = item_spot(axes, tl.minimum(begin + t, items - 1), first, images, RUNS)
                store_rows(head_start(dq_ptr, grad_strides, image, along, h), dq_at, dq[t] * scale, valid, D, WIDTH)
        if HAS_BIAS:
            entries = (2 * axes[0].window - 1) * (2 * axes[1].window - 1) * (2 * axes[2].window - 1)
            adds = piece > first_piece
            fold_pairs(pairs, partial_ptr + slot * entries, axes, tile, items > 0, adds, ROWS, COLUMNS, FOLD)
