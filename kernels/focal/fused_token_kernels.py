"""Kernels of focal modulation that take blocks of tokens: the gated sum with `point`, and the gradients around it.

Contexts are [maps, LEVELS, tokens, channels], and so is what goes into their GELUs; means are [maps, channels] in
float32. Gates and their gradients are columns of rows `stride` numbers apart.
"""

import triton
import triton.language as tl

from ..fused_gelu import gelu, gelu_slope
from ..fused_rows import product


@triton.jit
def load_gate(gates_ptr, n, valid, stride, level):
    return tl.load(gates_ptr + n.to(tl.int64) * stride + level, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def load_tile(ptr, n, stride, c, inside):
    return tl.load(ptr + n.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def level_tile(ptr, map, level, i, c, tokens, channels, inside, LEVELS: tl.constexpr):
    """Tokens `i` of a level of [maps, LEVELS, tokens, channels]."""
    start = ptr + (map.to(tl.int64) * LEVELS + level) * tokens * channels
    return load_tile(start, i, channels, c, inside)


@triton.jit(do_not_specialize=["tokens"])
def modulate(
    contexts_ptr,
    gates_ptr,
    mean_ptr,
    weight_ptr,
    bias_ptr,
    query_ptr,
    modulator_ptr,
    out_ptr,
    stride,
    tokens,
    channels,
    factor,
    weight_stride,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEPS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Output of block program_id(1) of the tokens of map program_id(2), block program_id(0) of channels.

    Queries and gates lie in rows `stride` numbers apart. With KEEPS also the gated sum, for the backward pass.
    """
    map = tl.program_id(2)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = i < tokens
    n = map.to(tl.int64) * tokens + i
    last = load_gate(gates_ptr, n, valid, stride, LEVELS) * factor
    gates = ()
    for level in tl.static_range(LEVELS):
        gates = gates + (load_gate(gates_ptr, n, valid, stride, level) * factor,)
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for start in range(0, channels, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = valid[:, None] & (k < channels)[None, :]
        whole = gelu(tl.load(mean_ptr + map * channels + k, mask=k < channels, other=0.0))
        total = last[:, None] * whole[None, :]
        for level in tl.static_range(LEVELS):
            context = level_tile(contexts_ptr, map, level, i, k, tokens, channels, inside, LEVELS)
            total += gates[level][:, None] * context
        if KEEPS:
            at = modulator_ptr + n[:, None] * channels + k[None, :]
            tl.store(at, total.to(modulator_ptr.dtype.element_ty), mask=inside & (tl.program_id(0) == 0))
        at = weight_ptr + m[None, :] * weight_stride + k[:, None]
        w = tl.load(at, mask=(k < channels)[:, None] & (m < channels)[None, :], other=0.0)
        acc += product(total, w, PRODUCT)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + m, mask=m < channels, other=0.0).to(tl.float32)[None, :]
    inside = valid[:, None] & (m < channels)[None, :]
    out = acc * load_tile(query_ptr, n, stride, m, inside)
    tl.store(out_ptr + n[:, None] * channels + m[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def differentiate_gates(
    dmodulator_ptr,
    contexts_ptr,
    gates_ptr,
    mean_ptr,
    dgates_ptr,
    partial_ptr,
    stride,
    dgates_stride,
    tokens,
    channels,
    factor,
    LEVELS: tl.constexpr,
    SPARE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of the gates of block program_id(0) of the tokens of map program_id(1), with SPARE zeros after each;
    and the block's sum of dmodulator * (gate of the mean), in [maps, blocks, channels].
    """
    map = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = i < tokens
    n = map.to(tl.int64) * tokens + i
    last = load_gate(gates_ptr, n, valid, stride, LEVELS)
    slot = (map * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * channels
    sums = ()
    for _ in tl.static_range(LEVELS + 1):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        inside = valid[:, None] & (c < channels)[None, :]
        d = load_tile(dmodulator_ptr, n, channels, c, inside) * factor
        whole = gelu(tl.load(mean_ptr + map * channels + c, mask=c < channels, other=0.0))
        tl.store(partial_ptr + slot + c, tl.sum(d * last[:, None], 0), mask=c < channels)
        added = ()
        for level in tl.static_range(LEVELS):
            context = level_tile(contexts_ptr, map, level, i, c, tokens, channels, inside, LEVELS)
            added = added + (sums[level] + tl.sum(d * context, 1),)
        sums = added + (sums[LEVELS] + tl.sum(d * whole[None, :], 1),)
    column = tl.arange(0, WIDTH)
    out = tl.zeros([BLOCK, WIDTH], tl.float32)
    for level in tl.static_range(LEVELS + 1):
        out = tl.where((column == level)[None, :], sums[level][:, None], out)
    at = dgates_ptr + n[:, None] * dgates_stride + column[None, :]
    tl.store(at, out.to(dgates_ptr.dtype.element_ty), mask=valid[:, None] & (column < LEVELS + 1 + SPARE)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def differentiate_last(
    dmodulator_ptr,
    gates_ptr,
    convolved_ptr,
    mean_ptr,
    dwhole_ptr,
    out_ptr,
    stride,
    tokens,
    channels,
    factor,
    share,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of what goes into the last level's GELU, of block program_id(1) of the tokens of map program_id(2),
    block program_id(0) of channels.

    `dwhole_ptr` is the gradient of the GELU of the mean; `share` is one by the tokens.
    """
    map = tl.program_id(2)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = i < tokens
    inside = valid[:, None] & (c < channels)[None, :]
    n = map.to(tl.int64) * tokens + i
    slope = gelu_slope(tl.load(mean_ptr + map * channels + c, mask=c < channels, other=0.0))
    dmean = slope * tl.load(dwhole_ptr + map * channels + c, mask=c < channels, other=0.0) * share
    gate = load_gate(gates_ptr, n, valid, stride, LEVELS - 1) * factor
    dz = dmean[None, :] + gate[:, None] * load_tile(dmodulator_ptr, n, channels, c, inside)
    convolved = level_tile(convolved_ptr, map, LEVELS - 1, i, c, tokens, channels, inside, LEVELS)
    out = gelu_slope(convolved) * dz
    tl.store(out_ptr + n[:, None] * channels + c[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
