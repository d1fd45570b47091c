"""Kernels of large kernel attention's pointwise convolution and gate, on tokens [tokens, channels]."""

import triton
import triton.language as tl

from ..fused_rows import product


@triton.jit
def load_block(ptr, rows, stride, columns, tokens, channels):
    inside = (rows < tokens)[:, None] & (columns < channels)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def project(
    a_ptr,
    times_ptr,
    weight_ptr,
    bias_ptr,
    gate_ptr,
    out_ptr,
    tokens,
    channels,
    a_stride,
    times_stride,
    gate_stride,
    out_stride,
    weight_strides,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_TIMES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """(a * times) W + bias, all times `gate`, of block program_id(1) of tokens and block program_id(0) of channels.

    `weight_strides` are those of W's rows and columns.
    """
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for start in range(0, channels, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a = load_block(a_ptr, n, a_stride, k, tokens, channels)
        if HAS_TIMES:
            a = a.to(tl.float32) * load_block(times_ptr, n, times_stride, k, tokens, channels).to(tl.float32)
        at = weight_ptr + k[:, None] * weight_strides[0] + m[None, :] * weight_strides[1]
        w = tl.load(at, mask=(k < channels)[:, None] & (m < channels)[None, :], other=0.0)
        acc += product(a, w, PRODUCT)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + m, mask=m < channels, other=0.0).to(tl.float32)[None, :]
    if HAS_GATE:
        acc = acc * load_block(gate_ptr, n, gate_stride, m, tokens, channels).to(tl.float32)
    inside = (n < tokens)[:, None] & (m < channels)[None, :]
    at = out_ptr + n.to(tl.int64)[:, None] * out_stride + m[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["each"])
def differentiate_weight(
    dout_ptr,
    x_ptr,
    spatial_ptr,
    partial_ptr,
    partial_bias_ptr,
    tokens,
    channels,
    dout_stride,
    x_stride,
    spatial_stride,
    each,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Sums of (dout * x)^T spatial over `each` tokens from program_id(2) * each on, block program_id(0) of dout's
    channels and program_id(1) of spatial's: [programs, channels, channels]; and of dout * x, [programs, channels].
    """
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    p = tl.program_id(2).to(tl.int64)
    acc = tl.zeros([COLUMNS, COLUMNS], tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    first = tl.program_id(2) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = load_block(x_ptr, n, x_stride, m, last, channels).to(tl.float32)
        dgate = x * load_block(dout_ptr, n, dout_stride, m, last, channels).to(tl.float32)
        acc += product(tl.trans(dgate), load_block(spatial_ptr, n, spatial_stride, k, last, channels), PRODUCT)
        total += tl.sum(dgate, 0)
    at = partial_ptr + (p * channels + m)[:, None] * channels + k[None, :]
    tl.store(at, acc, mask=(m < channels)[:, None] & (k < channels)[None, :])
    tl.store(partial_bias_ptr + p * channels + m, total, mask=(m < channels) & (tl.program_id(1) == 0))
