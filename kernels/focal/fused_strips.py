"""Kernels of focal modulation that convolve with few taps, by strips; see depthwise/fused_strips.py for these.

They do what `focus` and `differentiate_level` of fused_kernels.py do by tiles. SIDE strips side by side make one row of
SIDE * channels lanes, of which a program takes CHANNELS, so that 96 channels leave no lane idle. A row of inputs is
loaded while the one before it is added, and waits in registers as it was loaded, PACK channels of 16 bits in each.
"""

import triton
import triton.language as tl

from ..depthwise.fused_strips import add_line, input_rows, line_at, load_taps, strip_spot, zeros
from ..fused_gelu import gelu, gelu_slope


@triton.jit
def lanes(block, channels, CHANNELS: tl.constexpr, SIDE: tl.constexpr, PACK: tl.constexpr):
    """Which strip and which channels the lanes have that hold PACK channels each."""
    lane = block * CHANNELS + tl.arange(0, CHANNELS // PACK) * PACK
    if SIDE == 1:
        return 0, lane
    else:
        return lane // channels, lane % channels


@triton.jit
def packed(ptr, PACK: tl.constexpr):
    """Pointers to pairs of channels, where PACK is 2."""
    return ptr.to(tl.pointer_type(tl.int32), bitcast=True) if PACK == 2 else ptr


@triton.jit
def packed_line(ptr, y, strides, PACK: tl.constexpr, WIDE: tl.constexpr):
    return line_at(ptr, y, (0, strides[1] // PACK), WIDE)


@triton.jit
def load_places(
    line,
    left,
    width,
    here,
    STEP: tl.constexpr,
    BEFORE: tl.constexpr,
    COUNT: tl.constexpr,
    INSIDE: tl.constexpr,
    EVEN: tl.constexpr,
):
    """COUNT places of a row of a map, STEP apart, from BEFORE ahead of column `left` on, to which `line` points.

    A tuple, zero outside. INSIDE columns from `left` on are known to be inside; `here` says which channels there are.
    """
    places = ()
    for s in tl.static_range(COUNT):
        at = line + (s - BEFORE) * STEP
        if s >= BEFORE and s < BEFORE + INSIDE:
            places = places + (tl.load(at) if EVEN else tl.load(at, mask=here, other=0),)
        else:
            x = left + (s - BEFORE)
            inside = (x >= 0) & (x < width)
            places = places + (tl.load(at, mask=inside if EVEN else inside & here, other=0),)
    return places


@triton.jit
def in_float32(places, dtype: tl.constexpr):
    """Places as loaded, maybe pairs of channels of `dtype` in one number, as channels in float32."""
    converted = ()
    for s in tl.static_range(len(places)):
        place = places[s]
        if place.dtype == tl.int32:
            if dtype == tl.bfloat16:
                low = (place << 16).to(tl.float32, bitcast=True)
                high = (place & -65536).to(tl.float32, bitcast=True)
            else:
                low = place.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
                high = (place >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
            place = tl.join(low, high).reshape(2 * place.shape[0])
        converted = converted + (place.to(tl.float32),)
    return converted


@triton.jit
def store_place(line, value, x, width, here, known: tl.constexpr, EVEN: tl.constexpr):
    value = value.to(line.dtype.element_ty)
    if known and EVEN:
        tl.store(line, value)
    elif known:
        tl.store(line, value, mask=here)
    else:
        tl.store(line, value, mask=here & (x < width))


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
    INSIDE: tl.constexpr,
    EVEN: tl.constexpr,
    KEEPS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Store GELUs of a strip's row, with KEEPS what goes into them too; return the total, which they join with SUMS."""
    for q in tl.static_range(len(convolved)):
        context = gelu(convolved[q])
        store_place(out_line + q * STEP, context, left + q, width, here, q < INSIDE, EVEN)
        if KEEPS:
            store_place(convolved_line + q * STEP, convolved[q], left + q, width, here, q < INSIDE, EVEN)
        if SUMS:
            total += context if q < INSIDE else tl.where(left + q < width, context, 0.0)
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
    KH: tl.constexpr,
    KW: tl.constexpr,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    INSIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    PACK: tl.constexpr,
    KEEPS: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """GELU of the convolution of z, of strips program_id(0) * SIDE on, block program_id(1) of their lanes.

    With KEEPS also what goes into the GELU; with SUMS a strip's sum over tokens times `share`, in [strips, channels].
    Z_STEP and STEP are the distances between tokens of z and of the others.
    """
    BEFORE: tl.constexpr = 0 if WHOLE else KW // 2
    WIDTH: tl.constexpr = COLUMNS + 2 * BEFORE
    LEFT: tl.constexpr = KW // 2 - BEFORE
    image, _, _, first, left = strip_spot(tl.program_id(0), height, width, 1, 1, rows, COLUMNS * SIDE)
    side, c = lanes(tl.program_id(1), channels, CHANNELS, SIDE, PACK)
    z_left, z_here = left + side * COLUMNS, c < channels
    z_image = packed(z_ptr + image * z_strides[0] + z_left.to(tl.int64) * Z_STEP + c, PACK)
    side, c = lanes(tl.program_id(1), channels, CHANNELS, SIDE, 1)
    left, here = left + side * COLUMNS, c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, False)
    spot = image * out_strides[0] + left.to(tl.int64) * STEP + c
    out_image, convolved_image = out_ptr + spot, convolved_ptr + spot if KEEPS else None
    start, end = input_rows(first, 0, height, 1, rows, KH)
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    start_line = packed_line(z_image, first + start - KH // 2, z_strides, PACK, WIDE)
    ahead = load_places(start_line, z_left, width, z_here, Z_STEP // PACK, BEFORE, WIDTH, INSIDE, EVEN)
    for t in range(start, end):
        line = in_float32(ahead, z_ptr.dtype.element_ty)
        # The next row, lest it be waited for; the last one once more.
        next = packed_line(z_image, first + tl.minimum(t + 1, end - 1) - KH // 2, z_strides, PACK, WIDE)
        ahead = load_places(next, z_left, width, z_here, Z_STEP // PACK, BEFORE, WIDTH, INSIDE, EVEN)
        added = add_line(acc, line, taps, KH, KW, COLUMNS, LEFT, WIDTH)
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
                INSIDE,
                EVEN,
                KEEPS,
                SUMS,
            )
        acc = added[COLUMNS:]
    # Rows of outputs at the foot of the map, which no further row of inputs serves.
    if KH > 1:
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
                    INSIDE,
                    EVEN,
                    KEEPS,
                    SUMS,
                )
            acc = acc[COLUMNS:] + zeros(COLUMNS, CHANNELS)
    if SUMS:
        strip = tl.program_id(0).to(tl.int64) * SIDE + side
        tl.store(partial_ptr + strip * channels + c, total * share, mask=here)


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
    INSIDE: tl.constexpr,
    EVEN: tl.constexpr,
):
    for q in tl.static_range(len(gates)):
        d = gelu_slope(convolved[q]) * (added[q] + gates[q] * factor * dmodulator[q])
        store_place(line + q * STEP, d, left + q, width, here, q < INSIDE, EVEN)


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
    KH: tl.constexpr,
    KW: tl.constexpr,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    INSIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    PACK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient of what goes into the GELU of LEVEL, from that of the level above, `d_ptr`, through its convolution.

    STEP is the distance between tokens of maps, GATES_STEP that of the gates.
    """
    BEFORE: tl.constexpr = 0 if WHOLE else KW // 2
    WIDTH: tl.constexpr = COLUMNS + 2 * BEFORE
    LEFT: tl.constexpr = KW // 2 - BEFORE
    GAP: tl.constexpr = STEP // PACK
    dtype: tl.constexpr = d_ptr.dtype.element_ty
    image, _, _, first, group_left = strip_spot(tl.program_id(0), height, width, 1, 1, rows, COLUMNS * SIDE)
    side, c = lanes(tl.program_id(1), channels, CHANNELS, SIDE, PACK)
    left, here = group_left + side * COLUMNS, c < channels
    spot = left.to(tl.int64) * STEP + c
    d_image = packed(d_ptr + image * strides[0] + spot, PACK)
    dmodulator_image = packed(dmodulator_ptr + image * strides[0] + spot, PACK)
    convolved_image = packed(convolved_ptr + image * convolved_strides[0] + spot, PACK)
    gates_strides = (0, width * GATES_STEP)
    gates_image = gates_ptr + image * height * gates_strides[1] + left.to(tl.int64) * GATES_STEP + LEVEL
    out_side, out_c = lanes(tl.program_id(1), channels, CHANNELS, SIDE, 1)
    out_left, out_here = group_left + out_side * COLUMNS, out_c < channels
    out_image = out_ptr + image * strides[0] + out_left.to(tl.int64) * STEP + out_c
    taps = load_taps(weight_ptr, out_c, out_here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, True)
    start, end = input_rows(first, 0, height, 1, rows, KH)
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    start_line = packed_line(d_image, first + start - KH // 2, strides, PACK, WIDE)
    ahead = load_places(start_line, left, width, here, GAP, BEFORE, WIDTH, INSIDE, EVEN)
    at = packed_line(dmodulator_image, first, strides, PACK, WIDE)
    next_dmodulator = load_places(at, left, width, here, GAP, 0, COLUMNS, INSIDE, EVEN)
    at = packed_line(convolved_image, first, convolved_strides, PACK, WIDE)
    next_convolved = load_places(at, left, width, here, GAP, 0, COLUMNS, INSIDE, EVEN)
    for t in range(start, end):
        o = t - (KH - 1)
        y = first + tl.maximum(o, 0)
        line = in_float32(ahead, dtype)
        dmodulator, convolved = next_dmodulator, next_convolved
        # The next rows, lest they be waited for; the last ones once more.
        next = packed_line(d_image, first + tl.minimum(t + 1, end - 1) - KH // 2, strides, PACK, WIDE)
        ahead = load_places(next, left, width, here, GAP, BEFORE, WIDTH, INSIDE, EVEN)
        later = first + tl.maximum(tl.minimum(o + 1, end - KH), 0)
        at = packed_line(dmodulator_image, later, strides, PACK, WIDE)
        next_dmodulator = load_places(at, left, width, here, GAP, 0, COLUMNS, INSIDE, EVEN)
        at = packed_line(convolved_image, later, convolved_strides, PACK, WIDE)
        next_convolved = load_places(at, left, width, here, GAP, 0, COLUMNS, INSIDE, EVEN)
        gates_line = line_at(gates_image, y, gates_strides, WIDE)
        gates = load_places(gates_line, left, width, here, GATES_STEP, 0, COLUMNS, INSIDE, True)
        added = add_line(acc, line, taps, KH, KW, COLUMNS, LEFT, WIDTH)
        if o >= 0:
            store_level(
                line_at(out_image, y, strides, WIDE),
                in_float32(convolved, dtype),
                added,
                spread(gates, SIDE, PACK),
                in_float32(dmodulator, dtype),
                factor,
                out_left,
                width,
                out_here,
                STEP,
                INSIDE,
                EVEN,
            )
        acc = added[COLUMNS:]
    # Rows of outputs at the foot of the map, which no further row of inputs serves.
    if KH > 1:
        for o in range(end - (KH - 1), tl.minimum(rows, height - first)):
            if o >= 0:
                y = first + o
                at = packed_line(dmodulator_image, y, strides, PACK, WIDE)
                dmodulator = load_places(at, left, width, here, GAP, 0, COLUMNS, INSIDE, EVEN)
                at = packed_line(convolved_image, y, convolved_strides, PACK, WIDE)
                convolved = load_places(at, left, width, here, GAP, 0, COLUMNS, INSIDE, EVEN)
                gates_line = line_at(gates_image, y, gates_strides, WIDE)
                gates = load_places(gates_line, left, width, here, GATES_STEP, 0, COLUMNS, INSIDE, True)
                store_level(
                    line_at(out_image, y, strides, WIDE),
                    in_float32(convolved, dtype),
                    acc,
                    spread(gates, SIDE, PACK),
                    in_float32(dmodulator, dtype),
                    factor,
                    out_left,
                    width,
                    out_here,
                    STEP,
                    INSIDE,
                    EVEN,
                )
            acc = acc[COLUMNS:] + zeros(COLUMNS, CHANNELS)


@triton.jit
def spread(gates, SIDE: tl.constexpr, PACK: tl.constexpr):
    """Gates in float32, one for each strip, or for each of its channels."""
    wide = ()
    for q in tl.static_range(len(gates)):
        gate = gates[q].to(tl.float32)
        if SIDE > 1 and PACK == 2:
            gate = tl.join(gate, gate).reshape(2 * gate.shape[0])
        wide = wide + (gate,)
    return wide
