"""Kernels of focal modulation that convolve with few taps, by strips; see depthwise/fused_strips.py for these.

They do what `focus` and `differentiate_level` of fused_kernels.py do by tiles.
"""

import triton
import triton.language as tl

from ..depthwise.fused_strips import add_line, input_rows, line_at, load_line, load_taps, strip_spot, zeros
from .fused_token_kernels import gelu, gelu_slope


@triton.jit
def is_inside(x, width, here, valid, EVEN: tl.constexpr):
    inside = valid & (x < width)
    if not EVEN:
        inside = inside & here
    return inside


@triton.jit
def store_contexts(
    out_line,
    convolved_line,
    convolved,
    total,
    strides,
    left,
    width,
    here,
    EVEN: tl.constexpr,
    KEEPS: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Store GELUs of a strip's row, with KEEPS what goes into them too; return the total, which they join with SUMS."""
    for q in tl.static_range(len(convolved)):
        x = left + q
        inside = is_inside(x, width, here, True, EVEN)
        at = (x.to(tl.int64) if WIDE else x) * strides[2]
        context = gelu(convolved[q])
        tl.store(out_line + at, context.to(out_line.dtype.element_ty), mask=inside)
        if KEEPS:
            tl.store(convolved_line + at, convolved[q].to(convolved_line.dtype.element_ty), mask=inside)
        if SUMS:
            total += tl.where(inside, context, 0.0)
    return total


@triton.jit(do_not_specialize=["height", "width", "rows"])
def focus_strips(
    z_ptr,
    weight_ptr,
    convolved_ptr,
    out_ptr,
    partial_ptr,
    z_strides,
    out_strides,
    height,
    width,
    channels,
    share,
    rows,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    KEEPS: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """GELU of the convolution of z, of strip program_id(0), block program_id(1) of channels.

    With KEEPS also what goes into the GELU; with SUMS the strip's sum over tokens times `share`, in [strips, channels].
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    image, _, _, first, left = strip_spot(tl.program_id(0), height, width, 1, 1, rows, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, False)
    z_image = z_ptr + image * z_strides[0] + c
    out_image = out_ptr + image * out_strides[0] + c
    convolved_image = convolved_ptr + image * out_strides[0] + c if KEEPS else None
    start, end = input_rows(first, 0, height, 1, rows, KH)
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for t in range(start, end):
        line = line_at(z_image, first + t - KH // 2, z_strides, WIDE)
        line = load_line(line, z_strides, 0, left + LEFT - KW // 2, width, 1, here, WIDTH, EVEN, WIDE)
        added = add_line(acc, line, taps, KH, KW, COLUMNS, LEFT, WIDTH)
        o = t - (KH - 1)
        if o >= 0:
            total = store_contexts(
                line_at(out_image, first + o, out_strides, WIDE),
                line_at(convolved_image, first + o, out_strides, WIDE) if KEEPS else None,
                added[:COLUMNS],
                total,
                out_strides,
                left,
                width,
                here,
                EVEN,
                KEEPS,
                SUMS,
                WIDE,
            )
        acc = added[COLUMNS:]
    # Rows of outputs at the foot of the map, which no further row of inputs serves.
    for o in range(end - (KH - 1), tl.minimum(rows, height - first)):
        if o >= 0:
            total = store_contexts(
                line_at(out_image, first + o, out_strides, WIDE),
                line_at(convolved_image, first + o, out_strides, WIDE) if KEEPS else None,
                acc[:COLUMNS],
                total,
                out_strides,
                left,
                width,
                here,
                EVEN,
                KEEPS,
                SUMS,
                WIDE,
            )
        acc = acc[COLUMNS:] + zeros(COLUMNS, CHANNELS)
    if SUMS:
        at = partial_ptr + tl.program_id(0).to(tl.int64) * channels + c
        tl.store(at, total * share, mask=here)


@triton.jit
def load_level(
    dmodulator_line,
    gates_line,
    convolved_line,
    strides,
    convolved_strides,
    gates_stride,
    left,
    width,
    here,
    valid,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients of the gated sum, gates and inputs of the GELU of a strip's row, in their dtypes, three tuples."""
    dmodulator = ()
    gates = ()
    convolved = ()
    for q in tl.static_range(COLUMNS):
        x = left + q
        inside = is_inside(x, width, here, valid, EVEN)
        at = x.to(tl.int64) if WIDE else x
        dmodulator = dmodulator + (tl.load(dmodulator_line + at * strides[2], mask=inside, other=0.0),)
        gates = gates + (tl.load(gates_line + at * gates_stride, mask=valid & (x < width), other=0.0),)
        convolved = convolved + (tl.load(convolved_line + at * convolved_strides[2], mask=inside, other=0.0),)
    return dmodulator, gates, convolved


@triton.jit
def store_level(
    line,
    added,
    dmodulator,
    gates,
    convolved,
    strides,
    factor,
    left,
    width,
    here,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    for q in tl.static_range(len(gates)):
        x = left + q
        gate = gates[q].to(tl.float32) * factor
        d = gelu_slope(convolved[q].to(tl.float32)) * (added[q] + gate * dmodulator[q].to(tl.float32))
        at = line + (x.to(tl.int64) if WIDE else x) * strides[2]
        tl.store(at, d.to(line.dtype.element_ty), mask=is_inside(x, width, here, True, EVEN))


@triton.jit(do_not_specialize=["height", "width", "rows"])
def differentiate_level_strips(
    d_ptr,
    weight_ptr,
    dmodulator_ptr,
    gates_ptr,
    convolved_ptr,
    out_ptr,
    strides,
    convolved_strides,
    gates_stride,
    height,
    width,
    channels,
    factor,
    rows,
    LEVEL: tl.constexpr,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient of what goes into the GELU of LEVEL, from that of the level above, `d_ptr`, through its convolution."""
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    image, _, _, first, left = strip_spot(tl.program_id(0), height, width, 1, 1, rows, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, True)
    d_image = d_ptr + image * strides[0] + c
    dmodulator_image = dmodulator_ptr + image * strides[0] + c
    out_image = out_ptr + image * strides[0] + c
    convolved_image = convolved_ptr + image * convolved_strides[0] + c
    gates_strides = (height * width * gates_stride, width * gates_stride)
    gates_image = gates_ptr + image * gates_strides[0] + LEVEL
    start, end = input_rows(first, 0, height, 1, rows, KH)
    last = tl.minimum(rows, height - first)
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    for t in range(start, end):
        o = t - (KH - 1)
        y = first + o
        line = line_at(d_image, first + t - KH // 2, strides, WIDE)
        line = load_line(line, strides, 0, left + LEFT - KW // 2, width, 1, here, WIDTH, EVEN, WIDE)
        # Before the sums, so that they need not be waited for.
        dmodulator, gates, convolved = load_level(
            line_at(dmodulator_image, y, strides, WIDE),
            line_at(gates_image, y, gates_strides, WIDE),
            line_at(convolved_image, y, convolved_strides, WIDE),
            strides,
            convolved_strides,
            gates_stride,
            left,
            width,
            here,
            o >= 0,
            COLUMNS,
            EVEN,
            WIDE,
        )
        added = add_line(acc, line, taps, KH, KW, COLUMNS, LEFT, WIDTH)
        if o >= 0:
            at = line_at(out_image, y, strides, WIDE)
            store_level(at, added, dmodulator, gates, convolved, strides, factor, left, width, here, EVEN, WIDE)
        acc = added[COLUMNS:]
    # Rows of outputs at the foot of the map, which no further row of inputs serves.
    for o in range(end - (KH - 1), last):
        if o >= 0:
            y = first + o
            dmodulator, gates, convolved = load_level(
                line_at(dmodulator_image, y, strides, WIDE),
                line_at(gates_image, y, gates_strides, WIDE),
                line_at(convolved_image, y, convolved_strides, WIDE),
                strides,
                convolved_strides,
                gates_stride,
                left,
                width,
                here,
                True,
                COLUMNS,
                EVEN,
                WIDE,
            )
            at = line_at(out_image, y, strides, WIDE)
            store_level(at, acc, dmodulator, gates, convolved, strides, factor, left, width, here, EVEN, WIDE)
        acc = acc[COLUMNS:] + zeros(COLUMNS, CHANNELS)
