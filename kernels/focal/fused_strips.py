"""Kernels of focal modulation that convolve with few taps, by strips; see depthwise/fused_strips.py for these.

They do what `focus` and `differentiate_level` of fused_kernels.py do by tiles.
"""

import triton
import triton.language as tl

from ..depthwise.fused_strips import add_line, input_rows, line_at, load_taps, strip_spot, zeros
from ..fused_gelu import gelu, gelu_slope


@triton.jit
def is_inside(x, width, here, valid, EVEN: tl.constexpr):
    inside = valid & (x >= 0) & (x < width)
    if not EVEN:
        inside = inside & here
    return inside


@triton.jit
def load_places(line, left, width, here, valid, STEP: tl.constexpr, COUNT: tl.constexpr, EVEN: tl.constexpr):
    """COUNT places of a row of a map from column `left` on, where `line` points, STEP apart: a tuple, zero outside."""
    places = ()
    for s in tl.static_range(COUNT):
        inside = is_inside(left + s, width, here, valid, EVEN)
        places = places + (tl.load(line + s * STEP, mask=inside, other=0.0),)
    return places


@triton.jit
def in_float32(places):
    converted = ()
    for s in tl.static_range(len(places)):
        converted = converted + (places[s].to(tl.float32),)
    return converted


@triton.jit
def store_contexts(
    out_line,
    convolved_line,
    convolved,
    total,
    left,
    width,
    here,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
    KEEPS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Store GELUs of a strip's row, with KEEPS what goes into them too; return the total, which they join with SUMS."""
    for q in tl.static_range(len(convolved)):
        inside = is_inside(left + q, width, here, True, EVEN)
        context = gelu(convolved[q])
        tl.store(out_line + q * STEP, context.to(out_line.dtype.element_ty), mask=inside)
        if KEEPS:
            tl.store(convolved_line + q * STEP, convolved[q].to(convolved_line.dtype.element_ty), mask=inside)
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
    Z_STEP: tl.constexpr,
    STEP: tl.constexpr,
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
    Z_STEP and STEP are the distances between tokens of z and of the others.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    image, _, _, first, left = strip_spot(tl.program_id(0), height, width, 1, 1, rows, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, False)
    z_left = left + LEFT - KW // 2
    z_image = z_ptr + image * z_strides[0] + z_left.to(tl.int64) * Z_STEP + c
    out_image = out_ptr + image * out_strides[0] + left.to(tl.int64) * STEP + c
    convolved_image = convolved_ptr + image * out_strides[0] + left.to(tl.int64) * STEP + c if KEEPS else None
    start, end = input_rows(first, 0, height, 1, rows, KH)
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for t in range(start, end):
        line = line_at(z_image, first + t - KH // 2, z_strides, WIDE)
        line = load_places(line, z_left, width, here, True, Z_STEP, WIDTH, EVEN)
        added = add_line(acc, in_float32(line), taps, KH, KW, COLUMNS, LEFT, WIDTH)
        o = t - (KH - 1)
        if o >= 0:
            total = store_contexts(
                line_at(out_image, first + o, out_strides, WIDE),
                line_at(convolved_image, first + o, out_strides, WIDE) if KEEPS else None,
                added[:COLUMNS],
                total,
                left,
                width,
                here,
                STEP,
                EVEN,
                KEEPS,
                SUMS,
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
                left,
                width,
                here,
                STEP,
                EVEN,
                KEEPS,
                SUMS,
            )
        acc = acc[COLUMNS:] + zeros(COLUMNS, CHANNELS)
    if SUMS:
        at = partial_ptr + tl.program_id(0).to(tl.int64) * channels + c
        tl.store(at, total * share, mask=here)


@triton.jit
def store_level(
    line,
    convolved,
    added,
    gates,
    dmodulator,
    factor,
    left,
    width,
    here,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
):
    for q in tl.static_range(len(gates)):
        dz = added[q] + gates[q].to(tl.float32) * factor * dmodulator[q].to(tl.float32)
        d = gelu_slope(convolved[q].to(tl.float32)) * dz
        tl.store(line + q * STEP, d.to(line.dtype.element_ty), mask=is_inside(left + q, width, here, True, EVEN))


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
    height,
    width,
    channels,
    factor,
    rows,
    LEVEL: tl.constexpr,
    STEP: tl.constexpr,
    GATES_STEP: tl.constexpr,
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
    """Gradient of what goes into the GELU of LEVEL, from that of the level above, `d_ptr`, through its convolution.

    STEP is the distance between tokens of maps, GATES_STEP that of the gates.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    image, _, _, first, left = strip_spot(tl.program_id(0), height, width, 1, 1, rows, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, True)
    d_left = left + LEFT - KW // 2
    d_image = d_ptr + image * strides[0] + d_left.to(tl.int64) * STEP + c
    dmodulator_image = dmodulator_ptr + image * strides[0] + left.to(tl.int64) * STEP + c
    out_image = out_ptr + image * strides[0] + left.to(tl.int64) * STEP + c
    convolved_image = convolved_ptr + image * convolved_strides[0] + left.to(tl.int64) * STEP + c
    gates_strides = (0, width * GATES_STEP)
    gates_image = gates_ptr + image * height * gates_strides[1] + left.to(tl.int64) * GATES_STEP + LEVEL
    start, end = input_rows(first, 0, height, 1, rows, KH)
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    for t in range(start, end):
        o = t - (KH - 1)
        y = first + o
        at = line_at(d_image, first + t - KH // 2, strides, WIDE)
        d = load_places(at, d_left, width, here, True, STEP, WIDTH, EVEN)
        # Before the sums, so that they need not be waited for.
        at = line_at(dmodulator_image, y, strides, WIDE)
        dmodulator = load_places(at, left, width, here, o >= 0, STEP, COLUMNS, EVEN)
        at = line_at(convolved_image, y, convolved_strides, WIDE)
        convolved = load_places(at, left, width, here, o >= 0, STEP, COLUMNS, EVEN)
        gates_line = line_at(gates_image, y, gates_strides, WIDE)
        gates = load_places(gates_line, left, width, here, o >= 0, GATES_STEP, COLUMNS, True)
        added = add_line(acc, in_float32(d), taps, KH, KW, COLUMNS, LEFT, WIDTH)
        if o >= 0:
            line = line_at(out_image, y, strides, WIDE)
            store_level(line, convolved, added, gates, dmodulator, factor, left, width, here, STEP, EVEN)
        acc = added[COLUMNS:]
    # Rows of outputs at the foot of the map, which no further row of inputs serves.
    for o in range(end - (KH - 1), tl.minimum(rows, height - first)):
        if o >= 0:
            y = first + o
            at = line_at(dmodulator_image, y, strides, WIDE)
            dmodulator = load_places(at, left, width, here, True, STEP, COLUMNS, EVEN)
            at = line_at(convolved_image, y, convolved_strides, WIDE)
            convolved = load_places(at, left, width, here, True, STEP, COLUMNS, EVEN)
            gates_line = line_at(gates_image, y, gates_strides, WIDE)
            gates = load_places(gates_line, left, width, here, True, GATES_STEP, COLUMNS, True)
            line = line_at(out_image, y, strides, WIDE)
            store_level(line, convolved, acc, gates, dmodulator, factor, left, width, here, STEP, EVEN)
        acc = acc[COLUMNS:] + zeros(COLUMNS, CHANNELS)
