"""Kernels of fused depthwise convolution with few taps, on channels-last maps, by strips.

A strip is COLUMNS columns and any number of rows, a dilation apart both ways, of CHANNELS channels. A program is one
warp, each lane of which holds all taps of its channels. It goes down a strip, reads each row of inputs once and adds it
to the KH rows of outputs that it serves. Where a strip covers all columns of its residue, padding costs nothing.
"""

import triton
import triton.language as tl

from .fused_epilogue import finish, reads_more


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
def input_rows(first, residue, height, step, rows, KH: tl.constexpr):
    """First and last (exclusive) of a strip's KH - 1 + rows rows of inputs that lie in the map."""
    longest = (height - residue + step - 1) // step
    return tl.maximum(KH // 2 - first, 0), tl.minimum(rows + KH - 1, longest - first + KH // 2)


@triton.jit
def line_at(ptr, y, strides, WIDE: tl.constexpr):
    return ptr + (y.to(tl.int64) if WIDE else y) * strides[1]


@triton.jit
def load_line(
    line,
    strides,
    residue,
    left,
    width,
    step,
    here,
    COUNT: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """COUNT places of a row of a map from place `left` of a residue on, a tuple of [CHANNELS] in float32, zero outside.

    `line` points to the channels of the row; `here` says which of them there are.
    """
    places = ()
    for s in tl.static_range(COUNT):
        x = residue + (left + s) * step
        inside = (x >= 0) & (x < width)
        if not EVEN:
            inside = inside & here
        place = line + (x.to(tl.int64) if WIDE else x) * strides[2]
        places = places + (tl.load(place, mask=inside, other=0.0).to(tl.float32),)
    return places


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
):
    """Sums of the KH rows of outputs that a row of inputs serves, the first first; `acc` has all but the last row's.

    `line` lacks the LEFT columns of padding before its WIDTH places.
    """
    added = ()
    for i in tl.static_range(KH - 1, -1, -1):
        for q in tl.static_range(COLUMNS):
            value = acc[(KH - 1 - i) * COLUMNS + q] if i else tl.zeros(line[0].shape, tl.float32)
            for j in tl.static_range(KW):
                if q + j >= LEFT and q + j < LEFT + WIDTH:
                    value += line[q + j - LEFT] * taps[i * KW + j]
            added = added + (value,)
    return added


@triton.jit
def store_line(
    line,
    more_line,
    outs,
    bias,
    strides,
    more_strides,
    residue,
    left,
    width,
    step,
    here,
    valid,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    WIDE: tl.constexpr,
):
    for q in tl.static_range(len(outs)):
        x = residue + (left + q) * step
        inside = valid & (x < width)
        if not EVEN:
            inside = inside & here
        x = x.to(tl.int64) if WIDE else x
        out = outs[q]
        if HAS_BIAS:
            out += bias
        more = tl.load(more_line + x * more_strides[2], mask=inside, other=0.0) if reads_more(EPILOGUE) else None
        out = finish(out, more, EPILOGUE)
        tl.store(line + x * strides[2], out.to(line.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["height", "width", "step_y", "step_x", "rows"])
def convolve_strips(
    x_ptr,
    weight_ptr,
    bias_ptr,
    more_ptr,
    out_ptr,
    x_strides,
    more_strides,
    out_strides,
    height,
    width,
    channels,
    step_y,
    step_x,
    rows,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    FLIP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Output of strip program_id(0), block program_id(1) of channels; EPILOGUE is that of `finish`.

    `weight_ptr` is [FULL_KH, FULL_KW, channels] in float32, of which the middle KH x KW can meet the map; FLIP turns
    the kernel round, as the gradient of the input does. WHOLE says that a strip has all columns of a residue.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    image, residue_y, residue_x, first, left = strip_spot(
        tl.program_id(0), height, width, step_y, step_x, rows, COLUMNS
    )
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    taps = load_taps(weight_ptr, c, here, channels, FULL_KH, FULL_KW, KH, KW, EVEN, FLIP)
    bias = tl.load(bias_ptr + c, mask=here, other=0.0).to(tl.float32) if HAS_BIAS else None
    x_image = x_ptr + image * x_strides[0] + c
    out_image = out_ptr + image * out_strides[0] + c
    more_image = more_ptr + image * more_strides[0] + c if reads_more(EPILOGUE) else None
    start, end = input_rows(first, residue_y, height, step_y, rows, KH)
    # Sums of the rows of outputs that the next row of inputs serves too, the first first.
    acc = zeros((KH - 1) * COLUMNS, CHANNELS)
    for t in range(start, end):
        y = residue_y + (first + t - KH // 2) * step_y
        line = line_at(x_image, y, x_strides, WIDE)
        line = load_line(line, x_strides, residue_x, left + LEFT - KW // 2, width, step_x, here, WIDTH, EVEN, WIDE)
        added = add_line(acc, line, taps, KH, KW, COLUMNS, LEFT, WIDTH)
        o = t - (KH - 1)
        y = residue_y + (first + o) * step_y
        store_line(
            line_at(out_image, y, out_strides, WIDE),
            line_at(more_image, y, more_strides, WIDE) if reads_more(EPILOGUE) else None,
            added[:COLUMNS],
            bias,
            out_strides,
            more_strides,
            residue_x,
            left,
            width,
            step_x,
            here,
            o >= 0,
            EVEN,
            HAS_BIAS,
            EPILOGUE,
            WIDE,
        )
        acc = added[COLUMNS:]
    if end < rows + KH - 1:
        for k in tl.static_range(KH - 1):
            o = end + k - (KH - 1)
            y = residue_y + (first + o) * step_y
            store_line(
                line_at(out_image, y, out_strides, WIDE),
                line_at(more_image, y, more_strides, WIDE) if reads_more(EPILOGUE) else None,
                acc[k * COLUMNS : (k + 1) * COLUMNS],
                bias,
                out_strides,
                more_strides,
                residue_x,
                left,
                width,
                step_x,
                here,
                (o >= 0) & (o < rows) & (y < height),
                EVEN,
                HAS_BIAS,
                EPILOGUE,
                WIDE,
            )


@triton.jit(do_not_specialize=["height", "width", "step_y", "step_x", "rows", "strips", "each"])
def correlate_strips(
    x_ptr,
    dout_ptr,
    partial_ptr,
    x_strides,
    dout_strides,
    height,
    width,
    channels,
    step_y,
    step_x,
    rows,
    strips,
    each,
    KH: tl.constexpr,
    KW: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums for the gradients of weights and bias over `each` strips from program_id(0) * each on, of block
    program_id(1) of channels: [programs, KH * KW + 1, channels], the bias last.
    """
    LEFT: tl.constexpr = KW // 2 if WHOLE else 0
    WIDTH: tl.constexpr = COLUMNS if WHOLE else COLUMNS + KW - 1
    p = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = c < channels
    acc = zeros(KH * KW, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for strip in range(p * each, tl.minimum(p * each + each, strips)):
        image, residue_y, residue_x, first, left = strip_spot(strip, height, width, step_y, step_x, rows, COLUMNS)
        x_image = x_ptr + image * x_strides[0] + c
        dout_image = dout_ptr + image * dout_strides[0] + c
        start, end = input_rows(first, residue_y, height, step_y, rows, KH)
        last = tl.minimum(rows, (height - residue_y + step_y - 1) // step_y - first)
        # Rows of gradients that the next row of inputs meets, the last first.
        window = ()
        for k in tl.static_range(KH - 1):
            o = start - 1 - k
            above = line_at(dout_image, residue_y + (first + o) * step_y, dout_strides, WIDE)
            window = window + load_line(
                above,
                dout_strides,
                residue_x,
                left,
                tl.where((o >= 0) & (o < last), width, 0),
                step_x,
                here,
                COLUMNS,
                EVEN,
                WIDE,
            )
        for k in tl.static_range((KH - 1) * COLUMNS):
            total += window[k]
        for t in range(start, end):
            here_dout = line_at(dout_image, residue_y + (first + t) * step_y, dout_strides, WIDE)
            dout = load_line(
                here_dout,
                dout_strides,
                residue_x,
                left,
                tl.where(t < last, width, 0),
                step_x,
                here,
                COLUMNS,
                EVEN,
                WIDE,
            )
            for q in tl.static_range(COLUMNS):
                total += dout[q]
            met = dout + window
            line = line_at(x_image, residue_y + (first + t - KH // 2) * step_y, x_strides, WIDE)
            line = load_line(line, x_strides, residue_x, left + LEFT - KW // 2, width, step_x, here, WIDTH, EVEN, WIDE)
            added = ()
            for i in tl.static_range(KH):
                for j in tl.static_range(KW):
                    value = acc[i * KW + j]
                    for q in tl.static_range(COLUMNS):
                        if q + j >= LEFT and q + j < LEFT + WIDTH:
                            value += line[q + j - LEFT] * met[i * COLUMNS + q]
                    added = added + (value,)
            acc = added
            window = met[: (KH - 1) * COLUMNS]
    start = partial_ptr + p.to(tl.int64) * (KH * KW + 1) * channels + c
    for k in tl.static_range(KH * KW):
        tl.store(start + k * channels, acc[k], mask=here)
    tl.store(start + KH * KW * channels, total, mask=here)
