"""Kernels of fused window attention for windows larger than a tile: a window's rows and columns in chunks.

`attend_rows` has an online softmax. `differentiate_rows` gives dq and the sums for dbias, `differentiate_columns` dk
and dv; delta = rowsum(dout * out) - dlse.
"""

import triton
import triton.language as tl

from ..fused_rows import LN2, LOG2E, load_rows, logits, store_rows
from .fused_places import masked, offsets, places


@triton.jit
def pair_table(bias_ptr, head, rows, columns, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Bias in log2 units between queries `rows` and keys `columns`, minus infinity beyond the window."""
    inside = (rows < TOKENS)[:, None] & (columns < TOKENS)[None, :]
    if HAS_BIAS:
        at = bias_ptr + head * (TOKENS * TOKENS) + rows[:, None] * TOKENS + columns[None, :]
        return tl.where(inside, tl.load(at, mask=inside, other=0.0).to(tl.float32) * LOG2E, float("-inf"))
    return tl.where(inside, 0.0, float("-inf"))


@triton.jit(do_not_specialize=["counts"])
def attend_rows(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    mask_ptr,
    out_ptr,
    lse_ptr,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    lse_strides,
    counts,
    scale,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output and log-sum-exp of rows of window program_id(0), chunk program_id(2), of head program_id(1)."""
    window = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    valid = rows < TOKENS
    spot = places(window, tl.minimum(rows, TOKENS - 1), counts, WINDOW)
    q = load_rows(q_ptr, offsets(spot, head, q_strides, WIDE), D, WIDTH)
    # A finite start keeps rows that see no key free of NaN.
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    for start in range(0, TOKENS, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        others = places(window, tl.minimum(columns, TOKENS - 1), counts, WINDOW)
        k = load_rows(k_ptr, offsets(others, head, k_strides, WIDE), D, WIDTH)
        v = load_rows(v_ptr, offsets(others, head, v_strides, WIDE), E, VALUE_WIDTH)
        table = pair_table(bias_ptr, head, rows, columns, TOKENS, HAS_BIAS)
        seen = masked(table, mask_ptr, window, counts, rows, columns, False, TOKENS, MASK)
        s = logits(q, k, scale, seen, PRECISION)
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = new_top
    out = out / tl.where(total == 0, 1.0, total)[:, None]
    store_rows(out_ptr, offsets(spot, head, out_strides, WIDE), out, valid, E, VALUE_WIDTH)
    lse = tl.where(total == 0, float("-inf"), (top + tl.log2(total)) * LN2)
    tl.store(lse_ptr + offsets(spot, head, lse_strides, WIDE), lse, mask=valid)


@triton.jit(do_not_specialize=["counts", "windows", "each"])
def differentiate_rows(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    mask_ptr,
    out_ptr,
    lse_ptr,
    dout_ptr,
    dlse_ptr,
    terms_ptr,
    dq_ptr,
    partial_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    out_strides,
    lse_strides,
    dq_strides,
    counts,
    windows,
    each,
    scale,
    scale_log2,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq of chunk program_id(2) of `each` windows from program_id(0) * each on, and the terms of each query that
    `differentiate_columns` needs: [B, *spatial, heads, 2], the log-sum-exp in log2 units, and delta.

    The sums over a program's windows lie in `partial_ptr`, [heads, programs, chunks, ROWS, COLUMNS].
    """
    head = tl.program_id(1)
    i = tl.arange(0, ROWS)
    rows = tl.program_id(2) * ROWS + i
    valid = rows < TOKENS
    slot = (head * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(2) + tl.program_id(2)
    first = tl.program_id(0) * each
    for window in range(first, tl.minimum(first + each, windows)):
        spot = places(window, tl.minimum(rows, TOKENS - 1), counts, WINDOW)
        lse_at = offsets(spot, head, lse_strides, WIDE)
        q = load_rows(q_ptr, offsets(spot, head, q_strides, WIDE), D, WIDTH)
        dout = load_rows(dout_ptr, offsets(spot, head, dout_strides, WIDE), E, VALUE_WIDTH)
        out = load_rows(out_ptr, offsets(spot, head, out_strides, WIDE), E, VALUE_WIDTH)
        lse2 = tl.load(lse_ptr + lse_at) * LOG2E
        lse2 = tl.where(valid & (lse2 > float("-inf")), lse2, float("inf"))
        delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1) - tl.load(dlse_ptr + lse_at)
        tl.store(terms_ptr + 2 * lse_at, lse2, mask=valid)
        tl.store(terms_ptr + 2 * lse_at + 1, delta, mask=valid)
        dq = tl.zeros([ROWS, WIDTH], tl.float32)
        for start in range(0, TOKENS, CHUNK):
            j = tl.arange(0, CHUNK)
            columns = start + j
            others = places(window, tl.minimum(columns, TOKENS - 1), counts, WINDOW)
            k = load_rows(k_ptr, offsets(others, head, k_strides, WIDE), D, WIDTH)
            v = load_rows(v_ptr, offsets(others, head, v_strides, WIDE), E, VALUE_WIDTH)
            table = pair_table(bias_ptr, head, rows, columns, TOKENS, HAS_BIAS)
            seen = masked(table, mask_ptr, window, counts, rows, columns, False, TOKENS, MASK)
            s = logits(q, k, scale_log2, seen, PRECISION)
            p = tl.exp2(s - lse2[:, None])
            ds = p * (tl.dot(dout, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
            if HAS_BIAS:
                # Without a bias there is no `partial_ptr`.
                pair = partial_ptr + slot.to(tl.int64) * (ROWS * COLUMNS) + i[:, None] * COLUMNS + columns[None, :]
                if window > first:
                    ds += tl.load(pair)
                tl.store(pair, ds)
        store_rows(dq_ptr, offsets(spot, head, dq_strides, WIDE), dq * scale, valid, D, WIDTH)


@triton.jit(do_not_specialize=["counts"])
def differentiate_columns(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    mask_ptr,
    terms_ptr,
    dout_ptr,
    dk_ptr,
    dv_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    lse_strides,
    dk_strides,
    dv_strides,
    counts,
    scale,
    scale_log2,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv of columns of window program_id(0), chunk program_id(2) of CHUNK, of head program_id(1)."""
    window = tl.program_id(0)
    head = tl.program_id(1)
    columns = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
    valid = columns < TOKENS
    spot = places(window, tl.minimum(columns, TOKENS - 1), counts, WINDOW)
    k = load_rows(k_ptr, offsets(spot, head, k_strides, WIDE), D, WIDTH)
    v = load_rows(v_ptr, offsets(spot, head, v_strides, WIDE), E, VALUE_WIDTH)
    dk = tl.zeros([CHUNK, WIDTH], tl.float32)
    dv = tl.zeros([CHUNK, VALUE_WIDTH], tl.float32)
    for start in range(0, TOKENS, ROWS):
        rows = start + tl.arange(0, ROWS)
        others = places(window, tl.minimum(rows, TOKENS - 1), counts, WINDOW)
        terms_at = 2 * offsets(others, head, lse_strides, WIDE)
        q = load_rows(q_ptr, offsets(others, head, q_strides, WIDE), D, WIDTH)
        dout = load_rows(dout_ptr, offsets(others, head, dout_strides, WIDE), E, VALUE_WIDTH)
        lse2, delta = tl.split(tl.load(terms_ptr + terms_at[:, None] + tl.arange(0, 2)[None, :]))
        table = pair_table(bias_ptr, head, rows, columns, TOKENS, HAS_BIAS)
        seen = masked(table, mask_ptr, window, counts, rows, columns, False, TOKENS, MASK)
        s = logits(q, k, scale_log2, seen, PRECISION)
        p = tl.exp2(s - lse2[:, None])
        dv = tl.dot(tl.trans(p).to(dout.dtype), dout, dv, input_precision=PRECISION)
        ds = p * (tl.dot(dout, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dk = tl.dot(tl.trans(ds).to(q.dtype), q, dk, input_precision=PRECISION)
    store_rows(dk_ptr, offsets(spot, head, dk_strides, WIDE), dk * scale, valid, D, WIDTH)
    store_rows(dv_ptr, offsets(spot, head, dv_strides, WIDE), dv, valid, E, VALUE_WIDTH)
