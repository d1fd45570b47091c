"""Kernel that goes back through GELU and correlates in one pass, by strips; see fused_strips.py for these.

A program goes down the rows of outputs of a strip with the KH rows of inputs that one of them is made of, so that the
convolution can be taken again and its gradient meet the same inputs. The next row is loaded while this one is computed.
"""

import triton
import triton.language as tl

from ..fused_gelu import gelu_slope
from .fused_strips import load_taps, strip_spot, zeros


@triton.jit
def load_row(ptr, y, stride, left, height, width, here, STEP: tl.constexpr, COUNT: tl.constexpr, EVEN: tl.constexpr):
    """COUNT places of row y of a map from column `left` on, to which `ptr` points: a tuple as loaded, zero outside."""
    # A loop's counter is a number in the interpreter; the sum is a tensor everywhere.
    line = ptr + (tl.zeros([], tl.int64) + y) * stride
    end = tl.where((y >= 0) & (y < height), width, 0)
    places = ()
    for s in tl.static_range(COUNT):
        inside = (left + s >= 0) & (left + s < end)
        if not EVEN:
            inside = inside & here
        places = places + (tl.load(line + s * STEP, mask=inside, other=0.0),)
    return places


@triton.jit
def in_float32(places):
    converted = ()
    for s in tl.static_range(len(places)):
        converted = converted + (places[s].to(tl.float32),)
    return converted


@triton.jit(do_not_specialize=["height", "width", "rows", "strips", "each"])
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
    rows,
    strips,
    each,
    X_STEP: tl.constexpr,
    DOUT_STEP: tl.constexpr,
    DSUMS_STEP: tl.constexpr,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Gradient of what goes into the GELU, and its sums for the gradients of weights and bias as in `correlate_strips`.

    The map is not dilated; the STEPs are distances between its columns.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    p = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, False)
    bias = tl.load(bias_ptr + c, mask=here, other=0.0).to(tl.float32) if HAS_BIAS else tl.zeros([CHANNELS], tl.float32)
    acc = zeros(KH * KW, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for strip in range(p * each, tl.minimum(p * each + each, strips)):
        image, _, _, first, left = strip_spot(strip, height, width, 1, 1, rows, COLUMNS)
        x_left = left + LEFT - KW // 2
        x_image = x_ptr + image * x_strides[0] + x_left.to(tl.int64) * X_STEP + c
        dout_image = dout_ptr + image * dout_strides[0] + left.to(tl.int64) * DOUT_STEP + c
        dsums_image = dsums_ptr + image * dsums_strides[0] + left.to(tl.int64) * DSUMS_STEP + c
        window = ()
        for i in tl.static_range(KH - 1):
            y = first + i - KH // 2
            line = load_row(x_image, y, x_strides[1], x_left, height, width, here, X_STEP, WIDTH, EVEN)
            window = window + in_float32(line)
        y = first + KH // 2
        coming = load_row(x_image, y, x_strides[1], x_left, height, width, here, X_STEP, WIDTH, EVEN)
        dcoming = load_row(dout_image, first, dout_strides[1], left, height, width, here, DOUT_STEP, COLUMNS, EVEN)
        for y in range(first, tl.minimum(first + rows, height)):
            met = window + in_float32(coming)
            dout = in_float32(dcoming)
            coming = load_row(x_image, y + 1 + KH // 2, x_strides[1], x_left, height, width, here, X_STEP, WIDTH, EVEN)
            dcoming = load_row(dout_image, y + 1, dout_strides[1], left, height, width, here, DOUT_STEP, COLUMNS, EVEN)
            out = dsums_image + (tl.zeros([], tl.int64) + y) * dsums_strides[1]
            for q in tl.static_range(COLUMNS):
                sums = bias
                for i in tl.static_range(KH):
                    for j in tl.static_range(KW):
                        if q + j >= LEFT and q + j < LEFT + WIDTH:
                            sums += met[i * WIDTH + q + j - LEFT] * taps[i * KW + j]
                d = gelu_slope(sums) * dout[q]
                inside = left + q < width
                if not EVEN:
                    inside = inside & here
                tl.store(out + q * DSUMS_STEP, d.to(dsums_ptr.dtype.element_ty), mask=inside)
                total += d
                added = ()
                for i in tl.static_range(KH):
                    for j in tl.static_range(KW):
                        value = acc[i * KW + j]
                        if q + j >= LEFT and q + j < LEFT + WIDTH:
                            value += met[i * WIDTH + q + j - LEFT] * d
                        added = added + (value,)
                acc = added
            window = met[WIDTH:]
    start = partial_ptr + p.to(tl.int64) * (KH * KW + 1) * channels + c
    for k in tl.static_range(KH * KW):
        tl.store(start + k * channels, acc[k], mask=here)
    tl.store(start + KH * KW * channels, total, mask=here)
