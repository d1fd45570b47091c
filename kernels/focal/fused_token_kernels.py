"""Kernels of focal modulation that take blocks of tokens: the gated sum, alone or with `point`; gradients around it.

Contexts are [maps, LEVELS, tokens, channels], and so is what goes into their GELUs; means are [maps, channels], and
sums over tokens that are left in parts [maps, PARTS, channels], in float32. Gates and their gradients are columns of
rows `stride` numbers apart.
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
    return tl.load(ptr + n.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0)


@triton.jit
def level_tile(ptr, map, level, i, c, tokens, channels, inside, LEVELS: tl.constexpr):
    """Tokens `i` of a level of [maps, LEVELS, tokens, channels]."""
    start = ptr + (map.to(tl.int64) * LEVELS + level) * tokens * channels
    return load_tile(start, i, channels, c, inside)


@triton.jit
def sum_parts(ptr, map, c, channels, PARTS: tl.constexpr, PADDED: tl.constexpr):
    """Sums of channels `c` of a map over PARTS of [maps, PARTS, channels], filled up to PADDED, a power of 2."""
    part = tl.arange(0, PADDED)
    at = ptr + (map.to(tl.int64) * PARTS + part)[:, None] * channels + c[None, :]
    return tl.sum(tl.load(at, mask=(part < PARTS)[:, None] & (c < channels)[None, :], other=0.0), 0)


@triton.jit
def load_gates(gates_ptr, n, valid, stride, factor, LEVELS: tl.constexpr):
    """The gates of tokens, a tuple, that of the mean last, times `factor`."""
    gates = ()
    for level in tl.static_range(LEVELS + 1):
        gates = gates + (load_gate(gates_ptr, n, valid, stride, level) * factor,)
    return gates


@triton.jit
def gated_sum(contexts_ptr, gates, mean, map, i, c, tokens, channels, inside, LEVELS: tl.constexpr):
    contexts = ()
    for level in tl.static_range(LEVELS):
        contexts = contexts + (level_tile(contexts_ptr, map, level, i, c, tokens, channels, inside, LEVELS),)
    total = gates[LEVELS][:, None] * gelu(mean)[None, :]
    for level in tl.static_range(LEVELS):
        total += gates[level][:, None] * contexts[level].to(tl.float32)
    return total


@triton.jit(do_not_specialize=["tokens"])
def gather(
    contexts_ptr,
    gates_ptr,
    partial_ptr,
    mean_ptr,
    modulator_ptr,
    stride,
    tokens,
    channels,
    factor,
    LEVELS: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEEPS: tl.constexpr,
):
    """Gated sum of block program_id(1) of the tokens of map program_id(2), block program_id(0) of channels.

    With KEEPS also the mean, [maps, channels], for the backward pass.
    """
    map = tl.program_id(2)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = i < tokens
    inside = valid[:, None] & (c < channels)[None, :]
    n = map.to(tl.int64) * tokens + i
    mean = sum_parts(partial_ptr, map, c, channels, PARTS, PADDED)
    if KEEPS:
        tl.store(mean_ptr + map * channels + c, mean, mask=(c < channels) & (tl.program_id(1) == 0))
    gates = load_gates(gates_ptr, n, valid, stride, factor, LEVELS)
    total = gated_sum(contexts_ptr, gates, mean, map, i, c, tokens, channels, inside, LEVELS)
    at = modulator_ptr + n[:, None] * channels + c[None, :]
    tl.store(at, total.to(modulator_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def modulate(
    contexts_ptr,
    gates_ptr,
    mean_ptr,
    modulator_ptr,
    weight_ptr,
    bias_ptr,
    query_ptr,
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
    """Output of block program_id(0) of the tokens of map program_id(1), of all channels, of which there are few.

    Queries and gates lie in rows `stride` numbers apart. With KEEPS also the gated sum.
    """
    map = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.arange(0, COLUMNS)
    valid = i < tokens
    n = map.to(tl.int64) * tokens + i
    gates = load_gates(gates_ptr, n, valid, stride, factor, LEVELS)
    filled = valid[:, None] & (m < channels)[None, :]
    # Before the product, lest it be waited for after that.
    query = load_tile(query_ptr, n, stride, m, filled)
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for start in range(0, channels, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = valid[:, None] & (k < channels)[None, :]
        mean = tl.load(mean_ptr + map * channels + k, mask=k < channels, other=0.0)
        total = gated_sum(contexts_ptr, gates, mean, map, i, k, tokens, channels, inside, LEVELS)
        if KEEPS:
            at = modulator_ptr + n[:, None] * channels + k[None, :]
            tl.store(at, total.to(modulator_ptr.dtype.element_ty), mask=inside)
        at = weight_ptr + m[None, :] * weight_stride + k[:, None]
        w = tl.load(at, mask=(k < channels)[:, None] & (m < channels)[None, :], other=0.0)
        acc += product(total, w, PRODUCT)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + m, mask=m < channels, other=0.0).to(tl.float32)[None, :]
    out = acc * query.to(tl.float32)
    tl.store(out_ptr + n[:, None] * channels + m[None, :], out.to(out_ptr.dtype.element_ty), mask=filled)


@triton.jit
def add_products(
    sums,
    dmodulator_ptr,
    contexts_ptr,
    mean_ptr,
    map,
    i,
    start,
    valid,
    tokens,
    channels,
    factor,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Add products of dmodulator with contexts, that of the mean last, over CHANNELS channels from `start` on.

    Also returns dmodulator in float32.
    """
    c = start + tl.arange(0, CHANNELS)
    inside = valid[:, None] & (c < channels)[None, :]
    d = load_tile(dmodulator_ptr, map.to(tl.int64) * tokens + i, channels, c, inside)
    contexts = ()
    for level in tl.static_range(LEVELS):
        contexts = contexts + (level_tile(contexts_ptr, map, level, i, c, tokens, channels, inside, LEVELS),)
    whole = gelu(tl.load(mean_ptr + map * channels + c, mask=c < channels, other=0.0))
    d = d.to(tl.float32) * factor
    added = ()
    for level in tl.static_range(LEVELS):
        added = added + (sums[level] + tl.sum(d * contexts[level].to(tl.float32), 1),)
    return added + (sums[LEVELS] + tl.sum(d * whole[None, :], 1),), d


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
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of the gates of BLOCKS blocks of tokens from program_id(0) * BLOCKS on, of map program_id(1), with
    SPARE zeros after each; and the sum of dmodulator * (gate of the mean), in [maps, programs, channels].

    More than one block only where CHANNELS are all channels.
    """
    map = tl.program_id(1)
    slot = partial_ptr + (map * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * channels
    column = tl.arange(0, WIDTH)
    met = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for block in tl.range(BLOCKS, num_stages=STAGES if BLOCKS > 1 else 1):
        i = (tl.program_id(0) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        valid = i < tokens
        n = map.to(tl.int64) * tokens + i
        last = load_gate(gates_ptr, n, valid, stride, LEVELS)
        sums = ()
        for _ in tl.static_range(LEVELS + 1):
            sums = sums + (tl.zeros([BLOCK], tl.float32),)
        if BLOCKS > 1:
            sums, d = add_products(
                sums,
                dmodulator_ptr,
                contexts_ptr,
                mean_ptr,
                map,
                i,
                0,
                valid,
                tokens,
                channels,
                factor,
                LEVELS,
                CHANNELS,
            )
            met += d * last[:, None]
        else:
            for start in tl.range(0, channels, CHANNELS, num_stages=STAGES):
                c = start + tl.arange(0, CHANNELS)
                sums, d = add_products(
                    sums,
                    dmodulator_ptr,
                    contexts_ptr,
                    mean_ptr,
                    map,
                    i,
                    start,
                    valid,
                    tokens,
                    channels,
                    factor,
                    LEVELS,
                    CHANNELS,
                )
                tl.store(slot + c, tl.sum(d * last[:, None], 0), mask=c < channels)
        out = tl.zeros([BLOCK, WIDTH], tl.float32)
        for level in tl.static_range(LEVELS + 1):
            out = tl.where((column == level)[None, :], sums[level][:, None], out)
        at = dgates_ptr + n[:, None] * dgates_stride + column[None, :]
        tl.store(at, out.to(dgates_ptr.dtype.element_ty), mask=valid[:, None] & (column < LEVELS + 1 + SPARE)[None, :])
    if BLOCKS > 1:
        c = tl.arange(0, CHANNELS)
        tl.store(slot + c, tl.sum(met, 0), mask=c < channels)


@triton.jit(do_not_specialize=["tokens"])
def differentiate_last(
    dmodulator_ptr,
    gates_ptr,
    convolved_ptr,
    mean_ptr,
    partial_ptr,
    out_ptr,
    stride,
    tokens,
    channels,
    factor,
    share,
    LEVELS: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of what goes into the last level's GELU, of block program_id(1) of the tokens of map program_id(2),
    block program_id(0) of channels.

    `partial_ptr` sums to the gradient of the GELU of the mean; `share` is one by the tokens.
    """
    map = tl.program_id(2)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = i < tokens
    inside = valid[:, None] & (c < channels)[None, :]
    n = map.to(tl.int64) * tokens + i
    d = load_tile(dmodulator_ptr, n, channels, c, inside)
    convolved = level_tile(convolved_ptr, map, LEVELS - 1, i, c, tokens, channels, inside, LEVELS)
    gate = load_gate(gates_ptr, n, valid, stride, LEVELS - 1) * factor
    slope = gelu_slope(tl.load(mean_ptr + map * channels + c, mask=c < channels, other=0.0))
    dmean = slope * sum_parts(partial_ptr, map, c, channels, PARTS, PADDED) * share
    dz = dmean[None, :] + gate[:, None] * d.to(tl.float32)
    out = gelu_slope(convolved.to(tl.float32)) * dz
    tl.store(out_ptr + n[:, None] * channels + c[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
