"""Kernel of the gradients of weights and bias of fused depthwise convolution, by the strips of fused_strips.py.

A lane holds the sums for all taps of its channels, the KH rows of gradients of outputs that a row of inputs meets, and
the AHEAD rows of both maps that follow, which are on their way. Nothing is summed across lanes.
"""

import triton
import triton.language as tl

from .fused_strips import (
    first_line,
    input_rows,
    load_places,
    pack,
    row_step,
    strip_and_channels,
    strip_columns,
    strip_spot,
    unpack,
    zeros,
)


@triton.jit
def meet(
    acc,
    line,
    rows,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEFT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sums for all taps, plus the products of a row of inputs and KH rows of gradients, the last first."""
    added = ()
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            value = acc[i * KW + j]
            for q in tl.static_range(COLUMNS):
                if q + j >= LEFT and q + j < LEFT + WIDTH:
                    value += line[q + j - LEFT] * rows[i * COLUMNS + q]
            added = added + (value,)
    return added


@triton.jit
def plus(total, places):
    for s in tl.static_range(len(places)):
        total += places[s]
    return total


@triton.jit
def leave(partial_ptr, p, acc, total, c, here, channels):
    """Store the sums of program p for all taps and for the bias, which come last, in [programs, taps + 1, channels]."""
    TAPS: tl.constexpr = len(acc)
    start = partial_ptr + p.to(tl.int64) * (TAPS + 1) * channels + c
    for k in tl.static_range(TAPS):
        tl.store(start + k * channels, acc[k], mask=here)
    tl.store(start + TAPS * channels, total, mask=here)


@triton.jit(do_not_specialize=["height", "width", "rows", "strips", "each"])
def correlate_strips(
    x_ptr,
    dout_ptr,
    partial_ptr,
    x_strides,
    dout_strides,
    height,
    width,
    channels: tl.constexpr,
    step_y: tl.constexpr,
    step_x: tl.constexpr,
    rows,
    strips,
    each,
    KH: tl.constexpr,
    KW: tl.constexpr,
    X_STEP: tl.constexpr,
    DOUT_STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    AFTER: tl.constexpr,
    OVERLAP: tl.constexpr,
    CHANNELS: tl.constexpr,
    AHEAD: tl.constexpr,
    PACKED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Sums for the gradients of weights and bias over `each` strips, a block of channels: [programs, KH * KW + 1,
    channels], the bias last.

    At most the first OVERLAP columns of a strip belong to the strip before. PACKED keeps rows of gradients as loaded.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    BEFORE: tl.constexpr = KW // 2 - LEFT
    X_DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    DOUT_DTYPE: tl.constexpr = dout_ptr.dtype.element_ty
    p, c = strip_and_channels(channels, CHANNELS)
    here = c < channels
    x_row, dout_row = row_step(x_strides, step_y), row_step(dout_strides, step_y)
    acc = zeros(KH * KW, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for strip in range(p * each, tl.minimum(p * each + each, strips)):
        image, residue_y, residue_x, first, left = strip_spot(strip, height, width, step_y, step_x, rows, COLUMNS)
        left, taken, low, high, edge = strip_columns(left, residue_x, width, step_x, COLUMNS, BEFORE, WHOLE)
        start, end = input_rows(first, residue_y, height, step_y, rows, KH)
        last = tl.minimum(rows, (height - residue_y + step_y - 1) // step_y - first)
        y = residue_y + (first + start) * step_y
        above = first_line(dout_ptr + c, image, y, residue_x, left, dout_strides, DOUT_STEP)
        # Rows of gradients that the next row of inputs meets, the last first.
        window = ()
        for k in tl.static_range(KH - 1):
            above -= dout_row
            o = start - 1 - k
            valid = (o >= 0) & (o < last)
            row = load_places(above, taken, edge, here, valid, DOUT_STEP, COLUMNS, OVERLAP, AFTER, EVEN)
            window = window + (pack(row) if PACKED else unpack(pack(row), DOUT_DTYPE))
        total = plus(total, unpack(window, DOUT_DTYPE))
        dout_line = first_line(dout_ptr + c, image, y, residue_x, left, dout_strides, DOUT_STEP)
        # Some strips have no rows.
        y = tl.minimum(y - KH // 2 * step_y, height - 1)
        x_line = first_line(x_ptr + c, image, y, residue_x, left - BEFORE, x_strides, X_STEP)
        lines, douts = (), ()
        for k in tl.static_range(AHEAD):
            line = load_places(x_line, low, high, here, None, X_STEP, WIDTH, BEFORE, BEFORE + AFTER, EVEN)
            valid = start + k < last
            dout = load_places(dout_line, taken, edge, here, valid, DOUT_STEP, COLUMNS, OVERLAP, AFTER, EVEN)
            lines, douts = lines + pack(line), douts + pack(dout)
            # After the last row it comes again.
            x_line += tl.where(start + k + 1 < end, x_row, 0)
            dout_line += dout_row
        for t in range(start, end):
            x_places = unpack(lines[:WIDTH], X_DTYPE)
            kept = (douts[:COLUMNS] if PACKED else unpack(douts[:COLUMNS], DOUT_DTYPE)) + window
            met = unpack(kept, DOUT_DTYPE)
            line = load_places(x_line, low, high, here, None, X_STEP, WIDTH, BEFORE, BEFORE + AFTER, EVEN)
            valid = t + AHEAD < last
            dout = load_places(dout_line, taken, edge, here, valid, DOUT_STEP, COLUMNS, OVERLAP, AFTER, EVEN)
            lines, douts = lines[WIDTH:] + pack(line), douts[COLUMNS:] + pack(dout)
            x_line += tl.where(t + AHEAD + 1 < end, x_row, 0)
            dout_line += dout_row
            total = plus(total, met[:COLUMNS])
            acc = meet(acc, x_places, met, KH, KW, COLUMNS, LEFT, WIDTH)
            window = kept[: (KH - 1) * COLUMNS]
    leave(partial_ptr, p, acc, total, c, here, channels)
