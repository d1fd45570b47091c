"""Kernels of batch normalisation on rows of channels: sums over rows, and maps of rows by what came of them."""

import triton
import triton.language as tl

from ..fused_rows import narrowed


@triton.jit
def load_block(ptr, n, c, stride, last, channels, EVEN: tl.constexpr):
    """Rows `n` of channels `c` in float32, and which of them there are."""
    inside = (n < last)[:, None] & (c < channels)[None, :]
    if EVEN:
        inside = tl.full([n.shape[0], c.shape[0]], 1, tl.int1)
    x = tl.load(ptr + n.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0)
    return x.to(tl.float32), inside


@triton.jit
def of_channels(ptr, c, channels):
    return tl.load(ptr + c, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "each"])
def sum_rows(
    x_ptr,
    dout_ptr,
    center_ptr,
    partial_ptr,
    rows,
    channels,
    x_stride,
    dout_stride,
    each,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Sums over `each` rows from program_id(1) * each on: of x - center and of its square, or BACKWARD of dout and of
    dout * (x - center); [splits, 2, channels].
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    center = of_channels(center_ptr, c, channels)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, rows)
    plain = tl.zeros([BLOCK, CHANNELS], tl.float32)
    times = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x, inside = load_block(x_ptr, n, c, x_stride, last, channels, EVEN)
        x -= center[None, :]
        if BACKWARD:
            dout, _ = load_block(dout_ptr, n, c, dout_stride, last, channels, EVEN)
        else:
            x = tl.where(inside, x, 0.0)
            dout = x
        plain += dout
        times += dout * x
    at = partial_ptr + tl.program_id(1).to(tl.int64) * 2 * channels + c
    tl.store(at, tl.sum(plain, 0), mask=c < channels)
    tl.store(at + channels, tl.sum(times, 0), mask=c < channels)


@triton.jit(do_not_specialize=["splits", "rows"])
def settle(
    partial_ptr,
    center_ptr,
    var_ptr,
    first_ptr,
    second_ptr,
    splits,
    rows,
    channels,
    eps,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Mean and variance of channels, or BACKWARD the gradients of bias and weight, from sums over splits."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    plain = tl.zeros([BLOCK, CHANNELS], tl.float32)
    times = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        at = partial_ptr + split.to(tl.int64)[:, None] * 2 * channels + c[None, :]
        inside = (split < splits)[:, None] & (c < channels)[None, :]
        plain += tl.load(at, mask=inside, other=0.0)
        times += tl.load(at + channels, mask=inside, other=0.0)
    first, second = tl.sum(plain, 0), tl.sum(times, 0)
    if BACKWARD:
        second *= tl.rsqrt(of_channels(var_ptr, c, channels) + eps)
    else:
        off = first / rows
        second = tl.maximum(second / rows - off * off, 0.0)
        first = of_channels(center_ptr, c, channels) + off
    tl.store(first_ptr + c, narrowed(first, first_ptr), mask=c < channels)
    tl.store(second_ptr + c, narrowed(second, second_ptr), mask=c < channels)


@triton.jit(do_not_specialize=["rows", "each"])
def normalize(
    x_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    channels,
    x_stride,
    each,
    eps,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
):
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mean, bias = of_channels(mean_ptr, c, channels), of_channels(bias_ptr, c, channels)
    scale = tl.rsqrt(of_channels(var_ptr, c, channels) + eps) * of_channels(weight_ptr, c, channels)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, rows)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x, inside = load_block(x_ptr, n, c, x_stride, last, channels, EVEN)
        out = (x - mean[None, :]) * scale[None, :] + bias[None, :]
        tl.store(out_ptr + n.to(tl.int64)[:, None] * channels + c[None, :], narrowed(out, out_ptr), mask=inside)


@triton.jit(do_not_specialize=["rows", "each"])
def differentiate(
    dout_ptr,
    x_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    dbias_ptr,
    dweight_ptr,
    dx_ptr,
    rows,
    channels,
    dout_stride,
    x_stride,
    each,
    eps,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Gradient of x, from those of the output, bias and weight."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mean, weight = of_channels(mean_ptr, c, channels), of_channels(weight_ptr, c, channels)
    scale = tl.rsqrt(of_channels(var_ptr, c, channels) + eps)
    shift = of_channels(dbias_ptr, c, channels) / rows
    slope = of_channels(dweight_ptr, c, channels) / rows * scale
    scale *= weight
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, rows)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        dout, inside = load_block(dout_ptr, n, c, dout_stride, last, channels, EVEN)
        x, _ = load_block(x_ptr, n, c, x_stride, last, channels, EVEN)
        dx = (dout - shift[None, :] - (x - mean[None, :]) * slope[None, :]) * scale[None, :]
        tl.store(dx_ptr + n.to(tl.int64)[:, None] * channels + c[None, :], narrowed(dx, dx_ptr), mask=inside)
