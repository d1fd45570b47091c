"""Kernels of large kernel attention's pointwise convolution and gate, on tokens [tokens, channels]."""

import triton
import triton.language as tl

from ..fused_rows import narrowed, product


@triton.jit
def load_block(ptr, rows, stride, columns, tokens, channels):
    inside = (rows < tokens)[:, None] & (columns < channels)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def project(
    a_ptr,
    weight_ptr,
    bias_ptr,
    gate_ptr,
    other_ptr,
    out_ptr,
    gated_ptr,
    tokens,
    channels,
    a_stride,
    gate_stride,
    other_stride,
    out_stride,
    weight_strides,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """(a W + bias) * gate of block program_id(1) of tokens and block program_id(0) of channels.

    `weight_strides` are those of W's rows and columns. With HAS_OTHER also other * gate, as rows side by side.
    """
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (n < tokens)[:, None] & (m < channels)[None, :]
    # Before the product, lest it be waited for after that.
    gate = load_block(gate_ptr, n, gate_stride, m, tokens, channels).to(tl.float32)
    if HAS_OTHER:
        gated = load_block(other_ptr, n, other_stride, m, tokens, channels).to(tl.float32) * gate
        gated_at = gated_ptr + n.to(tl.int64)[:, None] * channels + m[None, :]
        tl.store(gated_at, gated.to(gated_ptr.dtype.element_ty), mask=inside)
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for start in range(0, channels, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a = load_block(a_ptr, n, a_stride, k, tokens, channels)
        w_at = weight_ptr + k[:, None] * weight_strides[0] + m[None, :] * weight_strides[1]
        w = tl.load(w_at, mask=(k < channels)[:, None] & (m < channels)[None, :], other=0.0)
        acc += product(a, w, PRODUCT)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + m, mask=m < channels, other=0.0).to(tl.float32)[None, :]
    at = out_ptr + n.to(tl.int64)[:, None] * out_stride + m[None, :]
    tl.store(at, (acc * gate).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["each"])
def differentiate_weight(
    dgate_ptr,
    spatial_ptr,
    partial_ptr,
    tokens,
    channels,
    dgate_stride,
    spatial_stride,
    each,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Sums of dgate^T spatial over `each` tokens from program_id(2) * each on, of blocks program_id(0), program_id(1)
    of their channels: [programs, channels + 1, channels]; the last row has the sums of dgate.
    """
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    p = tl.program_id(2).to(tl.int64)
    acc = tl.zeros([COLUMNS, COLUMNS], tl.float32)
    # As a product too, with ones: sums over tokens would go through shared memory.
    total = tl.zeros([COLUMNS, 16], tl.float32)
    ones = tl.full([BLOCK, 16], 1, dgate_ptr.dtype.element_ty)
    first = tl.program_id(2) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        dgate = tl.trans(load_block(dgate_ptr, n, dgate_stride, m, last, channels))
        acc += product(dgate, load_block(spatial_ptr, n, spatial_stride, k, last, channels), PRODUCT)
        total += product(dgate, ones, PRODUCT)
    at = partial_ptr + p * (channels + 1) * channels
    inside = (m < channels)[:, None] & (k < channels)[None, :]
    tl.store(at + m[:, None] * channels + k[None, :], acc, mask=inside)
    sums = tl.sum(total, 1) / 16
    tl.store(at + channels * channels + m, sums, mask=(m < channels) & (tl.program_id(1) == 0))


@triton.jit
def differentiate_point(
    dout_ptr,
    gate_ptr,
    spatial_ptr,
    weight_ptr,
    bias_ptr,
    dgate_ptr,
    dspatial_ptr,
    partial_ptr,
    tokens,
    channels,
    blocks,
    dout_stride,
    gate_stride,
    spatial_stride,
    dgate_stride,
    weight_strides,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRODUCT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All gradients of (spatial W^T + bias) * gate over every num_programs(0)-th block of tokens from program_id(0) on.

    Those of gate and spatial go to maps, those of W and bias to [programs, channels + 1, channels] as
    `differentiate_weight` has them. COLUMNS are all channels, so that each map moves once.
    """
    c = tl.arange(0, COLUMNS)
    square = (c < channels)[:, None] & (c < channels)[None, :]
    weight_at = weight_ptr + c[None, :] * weight_strides[0] + c[:, None] * weight_strides[1]
    weight = tl.load(weight_at, mask=square, other=0.0)
    bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32) if HAS_BIAS else None
    acc = tl.zeros([COLUMNS, COLUMNS], tl.float32)
    # As a product too, with ones: sums over tokens would go through shared memory.
    total = tl.zeros([COLUMNS, 16], tl.float32)
    ones = tl.full([BLOCK, 16], 1, dout_ptr.dtype.element_ty)
    # The next block of what is not multiplied as it is: products wait for nothing else that is loaded.
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    next_dout = load_block(dout_ptr, n, dout_stride, c, tokens, channels)
    next_gate = load_block(gate_ptr, n, gate_stride, c, tokens, channels)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        dout, gate = next_dout, next_gate
        n = (block + tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        next_dout = load_block(dout_ptr, n, dout_stride, c, tokens, channels)
        next_gate = load_block(gate_ptr, n, gate_stride, c, tokens, channels)
        n = block * BLOCK + tl.arange(0, BLOCK)
        inside = (n < tokens)[:, None] & (c < channels)[None, :]
        spatial = load_block(spatial_ptr, n, spatial_stride, c, tokens, channels)
        dpoint = narrowed(dout.to(tl.float32) * gate.to(tl.float32), dout_ptr)
        point = product(spatial, weight, PRODUCT)
        if HAS_BIAS:
            point += bias[None, :]
        dgate = point * dout.to(tl.float32)
        row = n.to(tl.int64)[:, None]
        tl.store(dgate_ptr + row * dgate_stride + c[None, :], dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
        dspatial = product(dpoint, tl.trans(weight), PRODUCT)
        at = dspatial_ptr + row * channels + c[None, :]
        tl.store(at, dspatial.to(dspatial_ptr.dtype.element_ty), mask=inside)
        dpoint = tl.trans(dpoint)
        acc += product(dpoint, spatial, PRODUCT)
        total += product(dpoint, ones, PRODUCT)
    slot = partial_ptr + tl.program_id(0).to(tl.int64) * (channels + 1) * channels
    tl.store(slot + c[:, None] * channels + c[None, :], acc, mask=square)
    tl.store(slot + channels * channels + c, tl.sum(total, 1) / 16, mask=c < channels)
