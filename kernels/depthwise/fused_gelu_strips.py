"""Kernel that goes back through GELU and correlates in one pass, by the strips of fused_strips.py.

A program goes down the rows of outputs of a strip with the KH rows of inputs that one of them is made of, so that the
convolution is taken again and its gradient meets the same inputs. The next rows are on their way meanwhile.
"""

import triton
import triton.language as tl

from ..fused_gelu import gelu_slope
from .fused_correlate import leave
from .fused_strips import first_line, load_places, load_taps, pack, row_step, strip_columns, strip_spot, unpack, zeros


@triton.jit
def sum_taps(lines, taps, bias, q, KH: tl.constexpr, KW: tl.constexpr, LEFT: tl.constexpr, WIDTH: tl.constexpr):
    """The convolution at column q of KH rows of inputs, which lack the LEFT columns of padding before WIDTH places."""
    sums = bias
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            if q + j >= LEFT and q + j < LEFT + WIDTH:
                sums += lines[i * WIDTH + q + j - LEFT] * taps[i * KW + j]
    return sums


@triton.jit
def add_products(acc, lines, d, q, KH: tl.constexpr, KW: tl.constexpr, LEFT: tl.constexpr, WIDTH: tl.constexpr):
    """Sums for all taps, plus the products of a gradient at column q and the inputs that `sum_taps` takes there."""
    added = ()
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            value = acc[i * KW + j]
            if q + j >= LEFT and q + j < LEFT + WIDTH:
                value += lines[i * WIDTH + q + j - LEFT] * d
            added = added + (value,)
    return added


@triton.jit(do_not_specialize=["height", "width", "step_y", "step_x", "rows", "strips", "each"])
def correlate_gelu_strips(
    x_ptr,
    weight_ptr,
    bias_ptr,
    dout_ptr,
    dsums_ptr,
    partial_ptr,
    x_strides,
    dout_strides,
    dsums_strides,
    height,
    width,
    channels,
    step_y,
    step_x,
    rows,
    strips,
    each,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    X_STEP: tl.constexpr,
    DOUT_STEP: tl.constexpr,
    DSUMS_STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    AFTER: tl.constexpr,
    OVERLAP: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Gradient of what goes into the GELU, and its sums for the gradients of weights and bias as `correlate_strips`
    has them.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    BEFORE: tl.constexpr = KW // 2 - LEFT
    p = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, False)
    bias = tl.load(bias_ptr + c, mask=here, other=0.0).to(tl.float32) if HAS_BIAS else tl.zeros([CHANNELS], tl.float32)
    x_row, dout_row = row_step(x_strides, step_y), row_step(dout_strides, step_y)
    dsums_row = row_step(dsums_strides, step_y)
    acc = zeros(KH * KW, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for strip in range(p * each, tl.minimum(p * each + each, strips)):
        image, residue_y, residue_x, first, left = strip_spot(strip, height, width, step_y, step_x, rows, COLUMNS)
        left, taken, low, high, edge = strip_columns(left, residue_x, width, step_x, COLUMNS, BEFORE, WHOLE)
        longest = (height - residue_y + step_y - 1) // step_y
        y = residue_y + first * step_y
        dout_line = first_line(dout_ptr + c, image, y, residue_x, left, dout_strides, DOUT_STEP)
        dsums_line = first_line(dsums_ptr + c, image, y, residue_x, left, dsums_strides, DSUMS_STEP)
        y -= KH // 2 * step_y
        x_line = first_line(x_ptr + c, image, y, residue_x, left - BEFORE, x_strides, X_STEP)
        window = ()
        for i in tl.static_range(KH - 1):
            valid = (first + i >= KH // 2) & (first + i < longest + KH // 2)
            line = load_places(x_line, low, high, here, valid, X_STEP, WIDTH, BEFORE, BEFORE + AFTER, EVEN)
            window = window + pack(line)
            x_line += x_row
        valid = first + KH // 2 < longest
        line = pack(load_places(x_line, low, high, here, valid, X_STEP, WIDTH, BEFORE, BEFORE + AFTER, EVEN))
        valid = first < longest
        dout = pack(load_places(dout_line, taken, edge, here, valid, DOUT_STEP, COLUMNS, OVERLAP, AFTER, EVEN))
        last = tl.minimum(first + rows, longest)
        for o in range(first, last):
            window = window + line
            lines = unpack(window, x_ptr.dtype.element_ty)
            gradients = unpack(dout, dout_ptr.dtype.element_ty)
            x_line += x_row
            valid = o + 1 + KH // 2 < longest
            line = pack(load_places(x_line, low, high, here, valid, X_STEP, WIDTH, BEFORE, BEFORE + AFTER, EVEN))
            dout_line += dout_row
            valid = o + 1 < last
            dout = pack(load_places(dout_line, taken, edge, here, valid, DOUT_STEP, COLUMNS, OVERLAP, AFTER, EVEN))
            for q in tl.static_range(COLUMNS):
                d = gelu_slope(sum_taps(lines, taps, bias, q, KH, KW, LEFT, WIDTH)) * gradients[q]
                inside = here
                if q < OVERLAP:
                    inside = inside & (q >= taken)
                if q >= COLUMNS - AFTER:
                    inside = inside & (q < edge)
                tl.store(dsums_line + q * DSUMS_STEP, d.to(dsums_ptr.dtype.element_ty), mask=inside)
                total += d
                acc = add_products(acc, lines, d, q, KH, KW, LEFT, WIDTH)
            dsums_line += dsums_row
            window = window[WIDTH:]
    leave(partial_ptr, p, acc, total, c, here, channels)
