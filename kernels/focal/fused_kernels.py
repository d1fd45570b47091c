"""Kernels of focal modulation that convolve with many taps, by tiles; see depthwise/fused_kernels.py for these.

`focus` makes one level's context; backwards `differentiate_level` gives the gradient of what goes into a level's GELU.
"""

import triton
import triton.language as tl

from ..depthwise.fused_kernels import convolved_rows, row_inside, row_pointers, tile_spot
from ..fused_gelu import gelu, gelu_slope
from .fused_token_kernels import load_gate


@triton.jit(do_not_specialize=["height", "width"])
def focus(
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
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    KEEPS: tl.constexpr,
    SUMS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """GELU of the convolution of z, of tile program_id(0), block program_id(1) of channels.

    With KEEPS also what goes into the GELU; with SUMS the tile's sum over tokens times `share`, in [tiles, channels].
    """
    image, residue, first, left = tile_spot(tl.program_id(0), height, width, 1, ROWS, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    w = left + tl.arange(0, COLUMNS)
    acc = convolved_rows(
        z_ptr + image.to(tl.int64) * z_strides[0],
        weight_ptr,
        z_strides,
        first,
        residue,
        w,
        c,
        height,
        width,
        channels,
        1,
        1,
        KH,
        KW,
        TAPS,
        ROWS,
        EVEN,
        False,
        WIDE,
    )
    total = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    for o in tl.static_range(ROWS):
        row = first + o
        inside = row_inside(row, w, c, height, width, channels, EVEN)
        at = row_pointers(out_ptr, out_strides, image, row, w, c)
        context = gelu(acc[o])
        tl.store(at, context.to(out_ptr.dtype.element_ty), mask=inside)
        if KEEPS:
            at = row_pointers(convolved_ptr, out_strides, image, row, w, c)
            tl.store(at, acc[o].to(out_ptr.dtype.element_ty), mask=inside)
        if SUMS:
            total += tl.where(inside, context, 0.0)
    if SUMS:
        at = partial_ptr + tl.program_id(0).to(tl.int64) * channels + c
        tl.store(at, tl.sum(total, 0) * share, mask=c < channels)


@triton.jit(do_not_specialize=["height", "width"])
def differentiate_level(
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
    LEVEL: tl.constexpr,
    GATES_STEP: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient of what goes into the GELU of LEVEL, from that of the level above, `d_ptr`, through its convolution.

    GATES_STEP is the distance between gates of tokens.
    """
    image, residue, first, left = tile_spot(tl.program_id(0), height, width, 1, ROWS, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    w = left + tl.arange(0, COLUMNS)
    acc = convolved_rows(
        d_ptr + image.to(tl.int64) * strides[0],
        weight_ptr,
        strides,
        first,
        residue,
        w,
        c,
        height,
        width,
        channels,
        1,
        1,
        KH,
        KW,
        TAPS,
        ROWS,
        EVEN,
        True,
        WIDE,
    )
    for o in tl.static_range(ROWS):
        row = first + o
        inside = row_inside(row, w, c, height, width, channels, EVEN)
        n = (image.to(tl.int64) * height + row) * width + w
        gate = load_gate(gates_ptr, n, (row < height) & (w < width), GATES_STEP, LEVEL) * factor
        dout = tl.load(row_pointers(dmodulator_ptr, strides, image, row, w, c), mask=inside, other=0.0).to(tl.float32)
        convolved = tl.load(row_pointers(convolved_ptr, convolved_strides, image, row, w, c), mask=inside, other=0.0)
        d = gelu_slope(convolved.to(tl.float32)) * (acc[o] + gate[:, None] * dout)
        at = row_pointers(out_ptr, strides, image, row, w, c)
        tl.store(at, d.to(out_ptr.dtype.element_ty), mask=inside)
