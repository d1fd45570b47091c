"""Kernel of fused depthwise convolution with few taps, on channels-last maps, by strips.

A strip is COLUMNS columns and any number of rows, a dilation apart both ways, of CHANNELS channels. A program is one
warp, each lane of which holds all taps of its channels. It goes down a strip, reads each row of inputs once and adds it
to the KH rows of outputs that it serves, while the AHEAD rows that follow are on their way. The last strip of a row
begins early enough to end with the map. Where a strip covers all columns of its residue, padding costs nothing.
"""

import triton
import triton.language as tl

from .fused_epilogue import finish, reads_inner, reads_more


@triton.jit
def strip_and_channels(channels, CHANNELS: tl.constexpr):
    """Number and channels of a program: blocks of channels follow each other, as they do in memory."""
    blocks = (channels + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    return program // blocks, program % blocks * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def strip_spot(strip, height, width, step_y, step_x, rows, COLUMNS: tl.constexpr):
    """Image, residues of the rows and columns modulo the dilation, and first places among those of such residues."""
    groups_y = ((height + step_y - 1) // step_y + rows - 1) // rows
    groups_x = ((width + step_x - 1) // step_x + COLUMNS - 1) // COLUMNS
    left = strip % groups_x * COLUMNS
    rest = strip // groups_x
    residue_x = rest % step_x
    rest = rest // step_x
    first = rest % groups_y * rows
    rest = rest // groups_y
    return tl.zeros([], tl.int64) + rest // step_y, rest % step_y, residue_x, first, left


@triton.jit
def strip_columns(left, residue_x, width, step_x, COLUMNS: tl.constexpr, BEFORE: tl.constexpr, WHOLE: tl.constexpr):
    """A strip's first place, moved back so that all its columns lie in the map, and how far; which of the columns of
    inputs, BEFORE of which precede it, lie there, first and last (exclusive), and how many places there are from it on.
    """
    places = (width - residue_x + step_x - 1) // step_x
    moved = tl.zeros([], tl.int32) if WHOLE else tl.maximum(left + COLUMNS - places, 0)
    left -= moved
    return left, moved, BEFORE - left, BEFORE - left + places, places - left


@triton.jit
def input_rows(first, residue, height, step, rows, KH: tl.constexpr):
    """First and last (exclusive) of a strip's KH - 1 + rows rows of inputs that lie in the map."""
    longest = (height - residue + step - 1) // step
    return tl.maximum(KH // 2 - first, 0), tl.minimum(rows + KH - 1, longest - first + KH // 2)


@triton.jit
def line_at(ptr, y, strides, WIDE: tl.constexpr):
    return ptr + (y.to(tl.int64) if WIDE else y) * strides[1]


@triton.jit
def first_line(ptr, image, y, residue, left, strides, STEP: tl.constexpr):
    """Where place `left` of a residue lies in row y of an image."""
    ptr += image * strides[0] + y.to(tl.int64) * strides[1]
    return ptr + residue.to(tl.int64) * strides[2] + left.to(tl.int64) * STEP


@triton.jit
def row_step(strides, step):
    return (tl.zeros([], tl.int64) + strides[1]) * step


@triton.jit
def load_places(
    line,
    low,
    high,
    here,
    valid,
    STEP: tl.constexpr,
    COUNT: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    EVEN: tl.constexpr,
):
    """COUNT places of a row of a map from where `line` points on, STEP apart: a tuple of [CHANNELS], zero outside.

    Those from `low` to `high` (exclusive) lie in the map, as all but the first BEFORE and the last AFTER do anyway;
    none unless `valid`, which may be None. `here` says which of the channels there are.
    """
    places = ()
    for s in tl.static_range(COUNT):
        inside = valid
        if s < BEFORE:
            inside = s >= low if inside is None else inside & (s >= low)
        if s >= COUNT - AFTER:
            inside = s < high if inside is None else inside & (s < high)
        if not EVEN:
            inside = here if inside is None else inside & here
        if inside is None:
            places = places + (tl.load(line + s * STEP),)
        else:
            places = places + (tl.load(line + s * STEP, mask=inside, other=0.0),)
    return places


@triton.jit
def pack(places):
    """Places of 16 bits a channel as pairs of channels in 32 bits: loops would carry each 16 bits in a register."""
    packed = ()
    for s in tl.static_range(len(places)):
        place = places[s]
        if place.dtype.primitive_bitwidth == 16 and place.shape[0] == 64:
            low, high = tl.split(place.to(tl.uint16, bitcast=True).to(tl.uint32).reshape(32, 2))
            packed = packed + (low | (high << 16),)
        else:
            packed = packed + (place,)
    return packed


@triton.jit
def unpack(places, DTYPE: tl.constexpr):
    """In float32 what `pack` made of places of DTYPE."""
    unpacked = ()
    for s in tl.static_range(len(places)):
        place = places[s]
        if place.dtype != tl.uint32:
            unpacked = unpacked + (place.to(tl.float32),)
        elif DTYPE.is_bf16():
            low = (place << 16).to(tl.float32, bitcast=True)
            high = (place & 0xFFFF0000).to(tl.float32, bitcast=True)
            unpacked = unpacked + (tl.interleave(low, high),)
        else:
            low = place.to(tl.uint16).to(DTYPE, bitcast=True)
            high = (place >> 16).to(tl.uint16).to(DTYPE, bitcast=True)
            unpacked = unpacked + (tl.interleave(low, high).to(tl.float32),)
    return unpacked


@triton.jit
def zeros(COUNT: tl.constexpr, CHANNELS: tl.constexpr):
    """COUNT times zeros [CHANNELS], a tuple."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros([CHANNELS], tl.float32),)
    return sums


@triton.jit
def load_taps(
    weight_ptr,
    c,
    here,
    channels,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    EVEN: tl.constexpr,
    FLIP: tl.constexpr,
):
    """The middle KH x KW of the taps [FULL_KH, FULL_KW, channels] in float32, a tuple; turned round with FLIP."""
    taps = ()
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            tap_i = (FULL_KH - KH) // 2 + (KH - 1 - i if FLIP else i)
            tap_j = (FULL_KW - KW) // 2 + (KW - 1 - j if FLIP else j)
            tap = weight_ptr + (tap_i * FULL_KW + tap_j) * channels + c
            if EVEN:
                taps = taps + (tl.load(tap),)
            else:
                taps = taps + (tl.load(tap, mask=here, other=0.0),)
    return taps


@triton.jit
def add_line(
    acc,
    line,
    taps,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEFT: tl.constexpr,
    WIDTH: tl.constexpr,
    bias=None,
):
    """Sums of the KH rows of outputs that a row of inputs serves, the first first; `acc` has all but the last row's.

    `line` lacks the LEFT columns of padding before its WIDTH places. The sums of a row begin with `bias`.
    """
    new = tl.zeros(line[0].shape, tl.float32) if bias is None else bias
    added = ()
    for i in tl.static_range(KH - 1, -1, -1):
        for q in tl.static_range(COLUMNS):
            value = acc[(KH - 1 - i) * COLUMNS + q] if i else new
            for j in tl.static_range(KW):
                if q + j >= LEFT and q + j < LEFT + WIDTH:
                    value += line[q + j - LEFT] * taps[i * KW + j]
            added = added + (value,)
    return added


@triton.jit
def load_beside(
    line, high, here, valid, STEP: tl.constexpr, COUNT: tl.constexpr, AFTER: tl.constexpr, EVEN: tl.constexpr
):
    """Packed places of a map that an epilogue reads beside the sums."""
    return pack(load_places(line, 0, high, here, valid, STEP, COUNT, 0, AFTER, EVEN))


@triton.jit
def store_places(
    line,
    sums,
    more,
    inner,
    total,
    low,
    high,
    here,
    valid,
    STEP: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    EVEN: tl.constexpr,
    EPILOGUE: tl.constexpr,
    MORE_DTYPE: tl.constexpr,
    TOTALS: tl.constexpr,
):
    """Store a row of outputs if `valid`; return `total`, with TOTALS plus the outputs from place `low` on.

    Those before it are of the strip before, as only the first BEFORE can be.
    """
    row = tl.zeros(total.shape, tl.float32)
    if reads_more(EPILOGUE):
        more = unpack(more, MORE_DTYPE)
    if reads_inner(EPILOGUE):
        inner = unpack(inner, MORE_DTYPE)
    for q in tl.static_range(len(sums)):
        inside = valid & (q < high) if q >= len(sums) - AFTER else valid
        if not EVEN:
            inside = inside & here
        beside = more[q] if reads_more(EPILOGUE) else None
        out = finish(sums[q], beside, inner[q] if reads_inner(EPILOGUE) else None, EPILOGUE)
        tl.store(line + q * STEP, out.to(line.dtype.element_ty), mask=inside)
        if TOTALS:
            if q < BEFORE:
                out = tl.where(q >= low, out, 0.0)
            if q >= len(sums) - AFTER:
                out = tl.where(q < high, out, 0.0)
            row += out
    return total + tl.where(valid, row, 0.0) if TOTALS else total


@triton.jit(do_not_specialize=["height", "width", "rows"])
def convolve_strips(
    x_ptr,
    weight_ptr,
    bias_ptr,
    more_ptr,
    inner_ptr,
    out_ptr,
    totals_ptr,
    x_strides,
    more_strides,
    inner_strides,
    out_strides,
    height,
    width,
    channels: tl.constexpr,
    step_y: tl.constexpr,
    step_x: tl.constexpr,
    rows,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    X_STEP: tl.constexpr,
    MORE_STEP: tl.constexpr,
    INNER_STEP: tl.constexpr,
    OUT_STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    AFTER: tl.constexpr,
    OVERLAP: tl.constexpr,
    CHANNELS: tl.constexpr,
    AHEAD: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Output of a strip, a block of channels; EPILOGUE is that of `finish`. If there is a `totals_ptr`, the sum of the
    outputs goes there, [strips, channels].

    `weight_ptr` is [FULL_KH, FULL_KW, channels] in float32, of which the middle KH x KW can meet the map; FLIP turns
    the kernel round, as the gradient of the input does. WHOLE says that a strip has all columns of a residue, of which
    the last AFTER may lie outside. The steps are distances between columns of a strip.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    BEFORE: tl.constexpr = KW // 2 - LEFT
    MORE_DTYPE: tl.constexpr = more_ptr.dtype.element_ty if reads_more(EPILOGUE) else None
    strip, c = strip_and_channels(channels, CHANNELS)
    image, residue_y, residue_x, first, left = strip_spot(strip, height, width, step_y, step_x, rows, COLUMNS)
    left, moved, low, high, _ = strip_columns(left, residue_x, width, step_x, COLUMNS, BEFORE, WHOLE)
    here = c < channels
    start, end = input_rows(first, residue_y, height, step_y, rows, KH)
    # Rows of zeros before the first make the number of rows a multiple of AHEAD.
    absent = (AHEAD - (end - start) % AHEAD) % AHEAD
    # Some strips have no rows.
    y = tl.minimum(residue_y + (first + start - KH // 2) * step_y, height - 1)
    x_line = first_line(x_ptr + c, image, y, residue_x, left - BEFORE, x_strides, X_STEP)
    x_row = row_step(x_strides, step_y)
    start -= absent
    lines = ()
    for k in tl.static_range(AHEAD):
        present = k >= absent if k < AHEAD - 1 else None
        places = load_places(x_line, low, high, here, present, X_STEP, WIDTH, BEFORE, BEFORE + AFTER, EVEN)
        lines = lines + pack(places)
        # After the last row it comes again.
        x_line += tl.where((k >= absent) & (start + k + 1 < end), x_row, 0)
    y = residue_y + (first + start - (KH - 1)) * step_y
    out_line = first_line(out_ptr + c, image, y, residue_x, left, out_strides, OUT_STEP)
    out_row = row_step(out_strides, step_y)
    more_line, more_row = None, None
    if reads_more(EPILOGUE):
        more_line = first_line(more_ptr + c, image, y, residue_x, left, more_strides, MORE_STEP)
        more_row = row_step(more_strides, step_y)
    inner_line, inner_row = None, None
    if reads_inner(EPILOGUE):
        inner_line = first_line(inner_ptr + c, image, y, residue_x, left, inner_strides, INNER_STEP)
        inner_row = row_step(inner_strides, step_y)
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, FLIP)
    bias = tl.load(bias_ptr + c, mask=here, other=0.0).to(tl.float32) if HAS_BIAS else None
    TOTALS: tl.constexpr = totals_ptr is not None
    total = tl.zeros([CHANNELS], tl.float32)
    # Sums of the rows of outputs that the next row of inputs serves too, the first first.
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    if HAS_BIAS:
        acc = ()
        for _ in tl.static_range((KH - 1) * COLUMNS):
            acc = acc + (bias,)
    for begin in range(start, end, AHEAD):
        for k in tl.static_range(AHEAD):
            t = begin + k
            line = unpack(lines[:WIDTH], x_ptr.dtype.element_ty)
            places = load_places(x_line, low, high, here, None, X_STEP, WIDTH, BEFORE, BEFORE + AFTER, EVEN)
            lines = lines[WIDTH:] + pack(places)
            x_line += tl.where(t + AHEAD + 1 < end, x_row, 0)
            wanted = t >= KH - 1
            more, inner = None, None
            # Before the sums, so that they need not be waited for.
            if reads_more(EPILOGUE):
                more = load_beside(more_line, high - BEFORE, here, wanted, MORE_STEP, COLUMNS, AFTER, EVEN)
                more_line += more_row
            if reads_inner(EPILOGUE):
                inner = load_beside(inner_line, high - BEFORE, here, wanted, INNER_STEP, COLUMNS, AFTER, EVEN)
                inner_line += inner_row
            added = add_line(acc, line, taps, KH, KW, COLUMNS, LEFT, WIDTH, bias)
            total = store_places(
                out_line,
                added[:COLUMNS],
                more,
                inner,
                total,
                moved,
                high - BEFORE,
                here,
                wanted,
                OUT_STEP,
                OVERLAP,
                AFTER,
                EVEN,
                EPILOGUE,
                MORE_DTYPE,
                TOTALS,
            )
            out_line += out_row
            acc = added[COLUMNS:]
    # Rows of outputs at the foot of the map, which no further row of inputs serves.
    if KH > 1:
        for o in range(end - (KH - 1), tl.minimum(rows, end - KH // 2)):
            wanted = o >= 0
            more, inner = None, None
            if reads_more(EPILOGUE):
                more = load_beside(more_line, high - BEFORE, here, wanted, MORE_STEP, COLUMNS, AFTER, EVEN)
                more_line += more_row
            if reads_inner(EPILOGUE):
                inner = load_beside(inner_line, high - BEFORE, here, wanted, INNER_STEP, COLUMNS, AFTER, EVEN)
                inner_line += inner_row
            total = store_places(
                out_line,
                acc[:COLUMNS],
                more,
                inner,
                total,
                moved,
                high - BEFORE,
                here,
                wanted,
                OUT_STEP,
                OVERLAP,
                AFTER,
                EVEN,
                EPILOGUE,
                MORE_DTYPE,
                TOTALS,
            )
            out_line += out_row
            acc = acc[COLUMNS:] + zeros(COLUMNS, CHANNELS)
    if TOTALS:
        tl.store(totals_ptr + strip.to(tl.int64) * channels + c, total, mask=here)
