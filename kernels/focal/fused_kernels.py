"""Kernels of fused focal modulation, on channels-last maps; see depthwise/fused_kernels.py for tiles and rows of taps.

`focus` makes one level's context, `gather` the gated sum. Backwards, `differentiate_gates` comes first; then level by
level, from the last, `differentiate_last` and `differentiate_level` give the gradient of what goes into the GELU.
"""

import triton
import triton.language as tl

from ..depthwise.fused_kernels import convolved_rows, row_inside, row_pointers, tile_spot

HALF_ROOT = tl.constexpr(0.7071067811865476)
DENSITY = tl.constexpr(0.3989422804014327)
LOG2E_HALF = tl.constexpr(0.7213475204444817)


@triton.jit
def gelu(x):
    return 0.5 * x * (1 + tl.erf(x * HALF_ROOT))


@triton.jit
def gelu_slope(x):
    return 0.5 * (1 + tl.erf(x * HALF_ROOT)) + x * tl.exp2(x * x * -LOG2E_HALF) * DENSITY


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

    With KEEPS also what goes into the GELU; with SUMS the tile's sum over tokens, in [tiles, channels].
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
        tl.store(at, tl.sum(total, 0), mask=c < channels)


@triton.jit
def load_gate(gates_ptr, n, valid, stride, level):
    return tl.load(gates_ptr + n.to(tl.int64) * stride + level, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def load_context(ptr, n, stride, c, inside):
    return tl.load(ptr + n.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens", "maps"])
def gather(
    contexts_ptr,
    gates_ptr,
    mean_ptr,
    out_ptr,
    gates_stride,
    tokens,
    maps,
    channels,
    factor,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gated sum of block program_id(1) of the `tokens` of map program_id(2), block program_id(0) of channels.

    `contexts_ptr` is [LEVELS, maps, tokens, channels], `mean_ptr` [maps, channels].
    """
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = i < tokens
    inside = valid[:, None] & (c < channels)[None, :]
    n = tl.program_id(2).to(tl.int64) * tokens + i
    whole = gelu(tl.load(mean_ptr + tl.program_id(2) * channels + c, mask=c < channels, other=0.0))
    out = load_gate(gates_ptr, n, valid, gates_stride, LEVELS)[:, None] * whole[None, :]
    for level in tl.static_range(LEVELS):
        start = contexts_ptr + level * (maps.to(tl.int64) * tokens * channels)
        gate = load_gate(gates_ptr, n, valid, gates_stride, level)
        out += gate[:, None] * load_context(start, n, channels, c, inside)
    at = out_ptr + n[:, None] * channels + c[None, :]
    tl.store(at, (out * factor).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "maps"])
def differentiate_gates(
    dout_ptr,
    contexts_ptr,
    gates_ptr,
    mean_ptr,
    dgates_ptr,
    partial_ptr,
    dout_stride,
    gates_stride,
    tokens,
    maps,
    channels,
    factor,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of the gates of block program_id(0) of the tokens of map program_id(1), and the block's sum of
    dout * (gate of the mean), in [maps, blocks, channels].
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = i < tokens
    n = tl.program_id(1).to(tl.int64) * tokens + i
    last = load_gate(gates_ptr, n, valid, gates_stride, LEVELS)
    slot = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * channels
    sums = ()
    for _ in tl.static_range(LEVELS + 1):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        inside = valid[:, None] & (c < channels)[None, :]
        dout = load_context(dout_ptr, n, dout_stride, c, inside) * factor
        whole = gelu(tl.load(mean_ptr + tl.program_id(1) * channels + c, mask=c < channels, other=0.0))
        tl.store(partial_ptr + slot + c, tl.sum(dout * last[:, None], 0), mask=c < channels)
        added = ()
        for level in tl.static_range(LEVELS):
            context = contexts_ptr + level * (maps.to(tl.int64) * tokens * channels)
            added = added + (sums[level] + tl.sum(dout * load_context(context, n, channels, c, inside), 1),)
        sums = added + (sums[LEVELS] + tl.sum(dout * whole[None, :], 1),)
    for level in tl.static_range(LEVELS + 1):
        at = dgates_ptr + n * (LEVELS + 1) + level
        tl.store(at, sums[level].to(dgates_ptr.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["tokens"])
def differentiate_last(
    dout_ptr,
    gates_ptr,
    convolved_ptr,
    dmean_ptr,
    out_ptr,
    dout_stride,
    gates_stride,
    tokens,
    channels,
    factor,
    LEVEL: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of what goes into the last level's GELU: its slope times (dmean + gate * dout); blocks as in `gather`.

    `dmean_ptr` is [maps, channels], already divided by the tokens.
    """
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = i < tokens
    inside = valid[:, None] & (c < channels)[None, :]
    n = tl.program_id(2).to(tl.int64) * tokens + i
    dmean = tl.load(dmean_ptr + tl.program_id(2) * channels + c, mask=c < channels, other=0.0)
    gate = load_gate(gates_ptr, n, valid, gates_stride, LEVEL) * factor
    dz = dmean[None, :] + gate[:, None] * load_context(dout_ptr, n, dout_stride, c, inside)
    d = gelu_slope(load_context(convolved_ptr, n, channels, c, inside)) * dz
    tl.store(out_ptr + n[:, None] * channels + c[None, :], d.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["height", "width"])
def differentiate_level(
    d_ptr,
    weight_ptr,
    dout_ptr,
    gates_ptr,
    convolved_ptr,
    out_ptr,
    strides,
    dout_strides,
    gates_stride,
    height,
    width,
    channels,
    factor,
    LEVEL: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient of what goes into the GELU of LEVEL, from that of the level above, `d_ptr`, through its convolution."""
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
        gate = load_gate(gates_ptr, n, (row < height) & (w < width), gates_stride, LEVEL) * factor
        dout = tl.load(row_pointers(dout_ptr, dout_strides, image, row, w, c), mask=inside, other=0.0).to(tl.float32)
        convolved = tl.load(row_pointers(convolved_ptr, strides, image, row, w, c), mask=inside, other=0.0)
        d = gelu_slope(convolved.to(tl.float32)) * (acc[o] + gate[:, None] * dout)
        at = row_pointers(out_ptr, strides, image, row, w, c)
        tl.store(at, d.to(out_ptr.dtype.element_ty), mask=inside)
