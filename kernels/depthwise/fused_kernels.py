"""Kernels of fused depthwise convolution, on channels-last maps, by rows of taps.

A tile is ROWS output rows, a dilation apart, of COLUMNS columns and CHANNELS channels. For each column of the kernel a
program holds TAPS rows of weights and reads every input row once, which serves up to TAPS output rows: 49 taps cost
(ROWS + 6) * 7 / ROWS loads an output, not 49. Taller kernels are taken TAPS rows at a time.
"""

import triton
import triton.language as tl

from .fused_epilogue import finish, reads_inner, reads_more


@triton.jit
def tile_spot(tile, height, width, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Image, residue of the rows modulo the dilation, first place among the rows of that residue, and first column."""
    columns = (width + COLUMNS - 1) // COLUMNS
    longest = (height + step - 1) // step
    groups = (longest + ROWS - 1) // ROWS
    column = tile % columns
    rest = tile // columns
    residue = rest % step
    rest = rest // step
    return rest // groups, residue, rest % groups * ROWS, column * COLUMNS


@triton.jit
def load_row(ptr, offset, row, valid, stride, height, c, channels, EVEN: tl.constexpr, WIDE: tl.constexpr):
    """[COLUMNS, CHANNELS] of one row of a map in float32, zero outside; `offset` is within the row."""
    inside = (valid & ((row >= 0) & (row < height)))[:, None]
    if not EVEN:
        inside = inside & (c < channels)[None, :]
    start = (row.to(tl.int64) if WIDE else row) * stride
    return tl.load(ptr + start + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def convolved_rows(
    x_image,
    weight_ptr,
    x_strides,
    first,
    residue,
    w,
    c,
    height,
    width,
    channels,
    step_y,
    step_x,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    FLIP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The sums over taps of a tile, a tuple of ROWS blocks [COLUMNS, CHANNELS] in float32.

    `weight_ptr` is [KH, KW, channels] in float32; FLIP turns the kernel round, as the gradient of the input does.
    """
    acc = ()
    for _ in tl.static_range(ROWS):
        acc = acc + (tl.zeros([w.shape[0], c.shape[0]], tl.float32),)
    for top in range(0, KH, TAPS):
        for j in range(KW):
            tap_j = KW - 1 - j if FLIP else j
            taps = ()
            for i in tl.static_range(TAPS):
                tap_i = KH - 1 - top - i if FLIP else top + i
                tap_ptr = weight_ptr + (tap_i * KW + tap_j) * channels + c
                if EVEN and KH % TAPS == 0:
                    taps = taps + (tl.load(tap_ptr),)
                else:
                    taps = taps + (tl.load(tap_ptr, mask=(c < channels) & (top + i < KH), other=0.0),)
            column = w + (j - KW // 2) * step_x
            valid = (column >= 0) & (column < width)
            offset = column[:, None] * x_strides[2] + c[None, :]
            for r in tl.static_range(ROWS + TAPS - 1):
                row = residue + (first + top + r - KH // 2) * step_y
                x = load_row(x_image, offset, row, valid, x_strides[1], height, c, channels, EVEN, WIDE)
                added = ()
                for o in tl.static_range(ROWS):
                    if r >= o and r - o < TAPS:
                        added = added + (acc[o] + x * taps[r - o][None, :],)
                    else:
                        added = added + (acc[o],)
                acc = added
    return acc


@triton.jit
def row_inside(row, w, c, height, width, channels, EVEN: tl.constexpr):
    inside = ((row < height) & (w < width))[:, None]
    if not EVEN:
        inside = inside & (c < channels)[None, :]
    return inside


@triton.jit
def row_pointers(ptr, strides, image, row, w, c):
    start = ptr + image.to(tl.int64) * strides[0] + row.to(tl.int64) * strides[1]
    return start + w[:, None] * strides[2] + c[None, :]


@triton.jit(do_not_specialize=["height", "width", "step_y", "step_x"])
def convolve(
    x_ptr,
    weight_ptr,
    bias_ptr,
    more_ptr,
    inner_ptr,
    out_ptr,
    x_strides,
    more_strides,
    inner_strides,
    out_strides,
    height,
    width,
    channels,
    step_y,
    step_x,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    FLIP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Output of tile program_id(0), block program_id(1) of channels; EPILOGUE is that of `finish`."""
    image, residue, first, left = tile_spot(tl.program_id(0), height, width, step_y, ROWS, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    w = left + tl.arange(0, COLUMNS)
    acc = convolved_rows(
        x_ptr + image.to(tl.int64) * x_strides[0],
        weight_ptr,
        x_strides,
        first,
        residue,
        w,
        c,
        height,
        width,
        channels,
        step_y,
        step_x,
        KH,
        KW,
        TAPS,
        ROWS,
        EVEN,
        FLIP,
        WIDE,
    )
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    for o in tl.static_range(ROWS):
        row = residue + (first + o) * step_y
        inside = row_inside(row, w, c, height, width, channels, EVEN)
        out = acc[o]
        if HAS_BIAS:
            out += bias[None, :]
        more, inner = None, None
        if reads_more(EPILOGUE):
            more = tl.load(row_pointers(more_ptr, more_strides, image, row, w, c), mask=inside, other=0.0)
        if reads_inner(EPILOGUE):
            inner = tl.load(row_pointers(inner_ptr, inner_strides, image, row, w, c), mask=inside, other=0.0)
        out = finish(out, more, inner, EPILOGUE)
        at = row_pointers(out_ptr, out_strides, image, row, w, c)
        tl.store(at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["height", "width", "step_y", "step_x", "tiles", "each"])
def correlate(
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
    tiles,
    each,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums for the gradients of weights and bias over `each` tiles from program_id(2) * each on, of block
    program_id(1) of channels: [programs, KH * KW + 1, channels], the bias last.

    Program_id(0) is a column of the kernel, and TAPS of its rows; neighbours read the same tiles.
    """
    j = tl.program_id(0) % KW
    top = tl.program_id(0) // KW * TAPS
    p = tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    acc = ()
    for _ in tl.static_range(TAPS):
        acc = acc + (tl.zeros([COLUMNS, CHANNELS], tl.float32),)
    total = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    for tile in range(p * each, tl.minimum(p * each + each, tiles)):
        image, residue, first, left = tile_spot(tile, height, width, step_y, ROWS, COLUMNS)
        w = left + tl.arange(0, COLUMNS)
        x_image = x_ptr + image.to(tl.int64) * x_strides[0]
        dout_image = dout_ptr + image.to(tl.int64) * dout_strides[0]
        here = w[:, None] * dout_strides[2] + c[None, :]
        dout = ()
        for o in tl.static_range(ROWS):
            row = residue + (first + o) * step_y
            d = load_row(dout_image, here, row, w < width, dout_strides[1], height, c, channels, EVEN, WIDE)
            dout = dout + (d,)
            total += d
        column = w + (j - KW // 2) * step_x
        valid = (column >= 0) & (column < width)
        offset = column[:, None] * x_strides[2] + c[None, :]
        for r in tl.static_range(ROWS + TAPS - 1):
            row = residue + (first + top + r - KH // 2) * step_y
            x = load_row(x_image, offset, row, valid, x_strides[1], height, c, channels, EVEN, WIDE)
            added = ()
            for i in tl.static_range(TAPS):
                if r >= i and r - i < ROWS:
                    added = added + (acc[i] + x * dout[r - i],)
                else:
                    added = added + (acc[i],)
            acc = added
    start = partial_ptr + p.to(tl.int64) * (KH * KW + 1) * channels
    for i in tl.static_range(TAPS):
        at = start + ((top + i) * KW + j) * channels
        tl.store(at + c, tl.sum(acc[i], 0), mask=(c < channels) & (top + i < KH))
    tl.store(start + KH * KW * channels + c, tl.sum(total, 0), mask=(c < channels) & (tl.program_id(0) == 0))
