"""Kernels of fused window attention for windows that fit in a tile: as many windows in one as there is room for.

A tile's rows are places `which * TOKENS + place`; a table of logits, minus infinity between windows, keeps them apart.
Rows beyond the last window repeat the last one and are neither stored nor summed.
"""

import triton
import triton.language as tl

from ..fused_rows import LN2, LOG2E, load_rows, logits, store_rows
from .fused_places import masked, offsets, places


@triton.jit
def tile_table(bias_ptr, head, which, place, TOKENS: tl.constexpr, FIT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Bias in log2 units between places of one window, minus infinity elsewhere."""
    same = (which[:, None] == which[None, :]) & (which < FIT)[None, :]
    if HAS_BIAS:
        at = bias_ptr + head * (TOKENS * TOKENS) + place[:, None] * TOKENS + place[None, :]
        return tl.where(same, tl.load(at, mask=same, other=0.0).to(tl.float32) * LOG2E, float("-inf"))
    return tl.where(same, 0.0, float("-inf"))


@triton.jit(do_not_specialize=["counts", "windows", "tiles", "each"])
def attend_windows(
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
    windows,
    tiles,
    each,
    scale,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASK: tl.constexpr,
    SHARED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output and log-sum-exp of `each` tiles from tile program_id(0) * each on, of head program_id(1).

    `windows` is the number of windows of all maps, `counts` that along each axis of a map. SHARED says that q, k and v
    have the same strides.
    """
    FIT: tl.constexpr = ROWS // TOKENS
    head = tl.program_id(1)
    i = tl.arange(0, ROWS)
    which = i // TOKENS
    place = i % TOKENS
    table = tile_table(bias_ptr, head, which, place, TOKENS, FIT, HAS_BIAS)
    first = tl.program_id(0) * each
    for tile in range(first, tl.minimum(first + each, tiles)):
        window = tile * FIT + which
        valid = (which < FIT) & (window < windows)
        window = tl.minimum(window, windows - 1)
        spot = places(window, place, counts, WINDOW)
        q_at = offsets(spot, head, q_strides, WIDE)
        k_at = q_at if SHARED else offsets(spot, head, k_strides, WIDE)
        v_at = q_at if SHARED else offsets(spot, head, v_strides, WIDE)
        q = load_rows(q_ptr, q_at, D, WIDTH)
        k = load_rows(k_ptr, k_at, D, WIDTH)
        v = load_rows(v_ptr, v_at, E, VALUE_WIDTH)
        seen = masked(table, mask_ptr, window, counts, place, place, True, TOKENS, MASK)
        s = logits(q, k, scale, seen, PRECISION)
        # A finite top keeps rows that see no key free of NaN.
        top = tl.maximum(tl.max(s, 1), -1e30)
        p = tl.exp2(s - top[:, None])
        total = tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        out = out / tl.where(total == 0, 1.0, total)[:, None]
        store_rows(out_ptr, offsets(spot, head, out_strides, WIDE), out, valid, E, VALUE_WIDTH)
        lse = tl.where(total == 0, float("-inf"), (top + tl.log2(total)) * LN2)
        tl.store(lse_ptr + offsets(spot, head, lse_strides, WIDE), lse, mask=valid)


@triton.jit(do_not_specialize=["counts", "windows", "tiles", "each"])
def differentiate_windows(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    mask_ptr,
    lse_ptr,
    dout_ptr,
    dlse_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    partial_ptr,
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    lse_strides,
    dq_strides,
    dk_strides,
    dv_strides,
    counts,
    windows,
    tiles,
    each,
    scale,
    scale_log2,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASK: tl.constexpr,
    SHARED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, dk and dv of a program's tiles, and in `partial_ptr`, [heads, programs, ROWS, ROWS], sums of d logits."""
    FIT: tl.constexpr = ROWS // TOKENS
    head = tl.program_id(1)
    i = tl.arange(0, ROWS)
    which = i // TOKENS
    place = i % TOKENS
    table = tile_table(bias_ptr, head, which, place, TOKENS, FIT, HAS_BIAS)
    sums = tl.zeros([ROWS, ROWS], tl.float32)
    first = tl.program_id(0) * each
    for tile in range(first, tl.minimum(first + each, tiles)):
        window = tile * FIT + which
        valid = (which < FIT) & (window < windows)
        window = tl.minimum(window, windows - 1)
        spot = places(window, place, counts, WINDOW)
        q_at = offsets(spot, head, q_strides, WIDE)
        k_at = q_at if SHARED else offsets(spot, head, k_strides, WIDE)
        v_at = q_at if SHARED else offsets(spot, head, v_strides, WIDE)
        lse_at = offsets(spot, head, lse_strides, WIDE)
        q = load_rows(q_ptr, q_at, D, WIDTH)
        k = load_rows(k_ptr, k_at, D, WIDTH)
        v = load_rows(v_ptr, v_at, E, VALUE_WIDTH)
        dout = load_rows(dout_ptr, offsets(spot, head, dout_strides, WIDE), E, VALUE_WIDTH)
        lse2 = tl.load(lse_ptr + lse_at) * LOG2E
        # Rows that see no key, or are no rows, have weights of 0.
        lse2 = tl.where(valid & (lse2 > float("-inf")), lse2, float("inf"))
        seen = masked(table, mask_ptr, window, counts, place, place, True, TOKENS, MASK)
        s = logits(q, k, scale_log2, seen, PRECISION)
        p = tl.exp2(s - lse2[:, None])
        dv = tl.dot(tl.trans(p).to(dout.dtype), dout, input_precision=PRECISION)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - (tl.sum(p * dp, 1) - tl.load(dlse_ptr + lse_at))[:, None])
        if HAS_BIAS:
            sums += ds
        dq = tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
        dk = tl.dot(tl.trans(ds).to(q.dtype), q, input_precision=PRECISION)
        store_rows(dq_ptr, offsets(spot, head, dq_strides, WIDE), dq * scale, valid, D, WIDTH)
        store_rows(dk_ptr, offsets(spot, head, dk_strides, WIDE), dk * scale, valid, D, WIDTH)
        store_rows(dv_ptr, offsets(spot, head, dv_strides, WIDE), dv, valid, E, VALUE_WIDTH)
    if HAS_BIAS:
        slot = (head * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * (ROWS * ROWS)
        tl.store(partial_ptr + slot + i[:, None] * ROWS + i[None, :], sums)
