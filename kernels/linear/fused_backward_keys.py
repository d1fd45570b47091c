"""Backward kernel of fused linear attention for values, keys and keys' weights; focused keys come after it.

With the state's gradient, dv = weight psi dS + dm and d = v dS^T + ds: dpsi = weight d and dweight = psi . d.
"""

import triton
import triton.language as tl

from .fused_kernels import norms
from .fused_maps import features, head_scales, pullback, turned
from .fused_tiles import load_state, load_tile, numbers, rows_product, spread, store_tile, within


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_keys(
    k_ptr,
    v_ptr,
    weight_ptr,
    parameter_ptr,
    rotary_ptr,
    stats_ptr,
    dstate_ptr,
    dk_ptr,
    dv_ptr,
    dweight_ptr,
    along_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    tokens,
    heads,
    each,
    BLOCK: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    STATS: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """dv, dk and the gradient of the keys' weights, in programs laid out as in `reduce`.

    Instead of focused dk, whose norms reach beyond a group of heads, it leaves the group's part of the sum of features
    times their gradients, [B, tokens, groups].
    """
    group = tl.program_id(0)
    sample = tl.program_id(2)
    c = tl.arange(0, WIDTH)
    scales = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    dpairs, dkeys, dvalues = load_state(dstate_ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    if PRODUCT == "bfloat16":
        dpairs = dpairs.to(tl.bfloat16)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        x = load_tile(k_ptr, k_strides, sample, n, valid, group, heads, GROUP, D, WIDTH, WIDE)
        x = spread(x, MAP, PRODUCT)
        value = load_tile(v_ptr, v_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
        lift, factor = norms(x, scales, stats_ptr, sample, tokens, n, valid, MAP, STATS, POWER)
        psi = features(x, lift, scales, MAP, POWER, D, WIDTH)
        rotated = turned(psi * factor[:, None, None], rotary_ptr, n, valid, tokens, c, False, D, ROTARY)
        dv = rows_product(rotated, dpairs, GROUP, VALUE_WIDTH, PRODUCT)
        weight = tl.full([BLOCK, GROUP], 1.0, tl.float32)
        if HAS_WEIGHT:
            weight_at, known = numbers(weight_ptr, sample, tokens, n, valid, group, heads, GROUP)
            weight = tl.load(weight_at, mask=known, other=0.0).to(tl.float32)
        if MAP == "focused":
            dweight = tl.sum(dv * value.to(tl.float32), 2) + tl.sum(psi * dkeys[None, :, :], 2) * factor[:, None]
            groups = (heads + GROUP - 1) // GROUP
            at = along_ptr + (sample.to(tl.int64) * tokens + n) * groups + group
            tl.store(at, tl.sum(dweight * weight, 1), mask=valid)
        else:
            d = rows_product(value, tl.trans(dpairs), GROUP, WIDTH, PRODUCT)
            d = turned(d, rotary_ptr, n, valid, tokens, c, True, D, ROTARY) + dkeys[None, :, :]
            dweight = tl.sum(d * psi, 2)
            dk = pullback(x, d * weight[:, :, None], MAP, D, WIDTH)
            store_tile(dk_ptr, dk_strides, sample, n, valid, group, heads, dk, GROUP, D, WIDTH, WIDE)
        if HAS_WEIGHT:
            at, known = numbers(dweight_ptr, sample, tokens, n, valid, group, heads, GROUP)
            tl.store(at, dweight.to(dweight_ptr.dtype.element_ty), mask=known)
        dv = dv * weight[:, :, None]
        if SHIFT:
            dv += dvalues[None, :, :]
        store_tile(dv_ptr, dv_strides, sample, n, valid, group, heads, dv, GROUP, E, VALUE_WIDTH, WIDE)
