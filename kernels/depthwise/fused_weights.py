"""Kernels that lay out the weights of fused depthwise convolution, and that sum their gradients over programs."""

import triton
import triton.language as tl


@triton.jit
def arrange(weight_ptr, taps_ptr, channels, strides, KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr):
    """Write weights, `strides` apart along channels, rows and columns, as [KH, KW, channels] in float32."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < KH * KW * channels
    c, tap = at % channels, at // channels
    weight = weight_ptr + c * strides[0] + tap // KW * strides[1] + tap % KW * strides[2]
    tl.store(taps_ptr + at, tl.load(weight, mask=inside, other=0.0).to(tl.float32), mask=inside)


@triton.jit
def arrange_both(
    first_ptr,
    second_ptr,
    first_taps_ptr,
    second_taps_ptr,
    channels,
    first_strides,
    second_strides,
    FIRST_KH: tl.constexpr,
    FIRST_KW: tl.constexpr,
    SECOND_KH: tl.constexpr,
    SECOND_KW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`arrange` for two weights: programs with program_id(1) = 0 do so for the first, the others for the second."""
    if tl.program_id(1) == 0:
        arrange(first_ptr, first_taps_ptr, channels, first_strides, FIRST_KH, FIRST_KW, BLOCK)
    else:
        arrange(second_ptr, second_taps_ptr, channels, second_strides, SECOND_KH, SECOND_KW, BLOCK)


@triton.jit(do_not_specialize=["programs"])
def settle(
    partial_ptr,
    weight_ptr,
    bias_ptr,
    programs,
    channels,
    strides,
    FULL_KH: tl.constexpr,
    FULL_KW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums over programs, in one order, of [programs, KH * KW + 1, channels], the bias last, for tap program_id(0).

    `strides` are those of the taps and the channels of the gradient of the weights, which has FULL_KH x FULL_KW taps;
    those around the middle KH x KW get zero.
    """
    tap = tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    i = tap // FULL_KW - (FULL_KH - KH) // 2
    j = tap % FULL_KW - (FULL_KW - KW) // 2
    of_bias = tap == FULL_KH * FULL_KW
    row = tl.where(of_bias, KH * KW, i * KW + j)
    count = tl.where(of_bias | ((i >= 0) & (i < KH) & (j >= 0) & (j < KW)), programs, 0)
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for start in range(0, count, BLOCK):
        p = start + tl.arange(0, BLOCK)
        at = (p.to(tl.int64) * (KH * KW + 1) + row) * channels
        inside = (p < programs)[:, None] & (c < channels)[None, :]
        acc += tl.load(partial_ptr + at[:, None] + c[None, :], mask=inside, other=0.0)
    sums = tl.sum(acc, 0)
    if of_bias:
        tl.store(bias_ptr + c, sums.to(bias_ptr.dtype.element_ty), mask=c < channels)
    else:
        at = weight_ptr + tap * strides[0] + c * strides[1]
        tl.store(at, sums.to(weight_ptr.dtype.element_ty), mask=c < channels)
