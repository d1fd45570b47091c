"""Backward kernels of fused linear attention.

With t = phi0 . s, y = alpha(t) phi S + beta(t) m and d = dy S^T: dphi = alpha d, dt = alpha'(t) (phi . d) +
beta'(t) (dy . m), dphi0 = dt s; dS = sum alpha phi^T dy, ds = sum dt phi0, dm = sum beta dy over queries.

Where the focused map's norms reach beyond a tile, its gradient needs the sum of features times their gradients over all
heads. Then a kernel runs twice: with PART "sums" it leaves each group's part of that, with "tokens" it reads them. Else
PART is "both". Sums over tokens of rows are kept apart for each row of a block until the loop ends.
"""

import triton
import triton.language as tl

from .fused_kernels import norms
from .fused_maps import (
    features,
    focused_pullback,
    head_scales,
    normalizer,
    normalizer_pullback,
    positive,
    pullback,
    sigmoid,
    steepness,
    turned,
)
from .fused_tiles import (
    heads_of,
    load_state,
    load_tile,
    numbers,
    pairs_product,
    rows_product,
    spread,
    store_state,
    store_tile,
)


@triton.jit
def parts(along_ptr, sample, tokens, n, valid, heads, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """Sum over groups of what they left in `along_ptr` [B, tokens, groups]."""
    group = tl.arange(0, GROUPS)
    groups = (heads + GROUP - 1) // GROUP
    at = along_ptr + (sample.to(tl.int64) * tokens + n)[:, None] * groups + group[None, :]
    return tl.sum(tl.load(at, mask=valid[:, None] & (group < groups)[None, :], other=0.0), 1)


@triton.jit
def leave_part(along_ptr, sample, tokens, n, valid, group, heads, part, GROUP: tl.constexpr):
    groups = (heads + GROUP - 1) // GROUP
    tl.store(along_ptr + (sample.to(tl.int64) * tokens + n) * groups + group, part, mask=valid)


@triton.jit
def store_dparameter(
    ptr,
    parameter_ptr,
    slot,
    group,
    heads,
    total,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A program's part of the gradient of the focused map's parameters, [slots, heads, D], from its sums of dy y."""
    head = heads_of(group, GROUP)
    d = tl.arange(0, WIDTH)
    inside = (head < heads)[:, None] & (d < D)[None, :]
    at = head[:, None] * D + d[None, :]
    parameter = tl.load(parameter_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scales = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, True)
    tl.store(ptr + slot.to(tl.int64) * heads * D + at, -total * scales * sigmoid(parameter), mask=inside)


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_queries(
    q_ptr,
    parameter_ptr,
    rotary_ptr,
    stats_ptr,
    state_ptr,
    dout_ptr,
    dq_ptr,
    partial_ptr,
    along_ptr,
    dparameter_ptr,
    q_strides,
    dout_strides,
    dq_strides,
    tokens,
    heads,
    each,
    eps,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    STATS: tl.constexpr,
    SHIFT: tl.constexpr,
    NORMALIZER: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """dq and the state's gradient from `each` queries, in programs and states laid out as in `reduce`."""
    group = tl.program_id(0)
    sample = tl.program_id(2)
    scales = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    pairs, keys, values = load_state(state_ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    if PRODUCT == "bfloat16":
        pairs = pairs.to(tl.bfloat16)
    pairs = tl.trans(pairs)
    dpairs = tl.zeros([GROUP * WIDTH, GROUP * VALUE_WIDTH], tl.float32)
    dkeys = tl.zeros([BLOCK, GROUP, WIDTH], tl.float32)
    dvalues = tl.zeros([BLOCK, GROUP, VALUE_WIDTH], tl.float32)
    dparameter = tl.zeros([BLOCK, GROUP, WIDTH], tl.float32)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < last
        x = load_tile(q_ptr, q_strides, sample, n, valid, group, heads, GROUP, D, WIDTH, WIDE)
        x = spread(x, MAP, PRODUCT)
        dout = load_tile(dout_ptr, dout_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
        lift, factor = norms(x, scales, stats_ptr, sample, tokens, n, valid, MAP, STATS, POWER)
        phi = features(x, lift, scales, MAP, POWER, D, WIDTH)
        t = tl.sum(phi * keys[None, :, :], 2) * factor[:, None]
        alpha, beta = normalizer(t, eps, NORMALIZER)
        alpha = tl.where(valid[:, None], alpha, 0.0)
        rotated = turned(phi, rotary_ptr, n, valid, tokens, False, D, WIDTH, ROTARY)
        d = rows_product(dout, pairs, GROUP, WIDTH, PRODUCT)
        dalpha = tl.sum(rotated * d, 2) * factor[:, None]
        dbeta = tl.zeros_like(t)
        if SHIFT:
            dbeta = tl.sum(dout.to(tl.float32) * values[None, :, :], 2)
        dt = tl.where(valid[:, None], normalizer_pullback(t, eps, dalpha, dbeta, NORMALIZER), 0.0)
        if PART != "tokens":
            dpairs += pairs_product(rotated * (alpha * factor[:, None])[:, :, None], dout, PRODUCT)
            dkeys += phi * (dt * factor[:, None])[:, :, None]
            if SHIFT:
                dvalues += dout.to(tl.float32) * beta[:, :, None]
        if MAP == "focused":
            along = tl.sum(alpha * dalpha + dt * t, 1)
            if PART == "sums":
                leave_part(along_ptr, sample, tokens, n, valid, group, heads, along, GROUP)
            elif PART == "tokens":
                along = parts(along_ptr, sample, tokens, n, valid, heads, GROUP, GROUPS)
        if PART != "sums":
            if MAP == "focused":
                steep = steepness(lift, factor, valid, POWER)[:, None]
                alpha, dt = alpha * steep, dt * steep
            d = turned(d * alpha[:, :, None], rotary_ptr, n, valid, tokens, True, D, WIDTH, ROTARY)
            d = d + dt[:, :, None] * keys[None, :, :]
            if MAP == "focused":
                y = positive(x, scales)
                d = focused_pullback(y, d, along, lift, factor, valid, POWER)
                if HAS_PARAMETER:
                    dparameter += d * y
                dq = tl.where(x > 0, d * scales[None, :, :], 0.0)
            else:
                dq = pullback(x, d, MAP, D, WIDTH)
            store_tile(dq_ptr, dq_strides, sample, n, valid, group, heads, dq, GROUP, D, WIDTH, WIDE)
    slot = tl.program_id(1) * tl.num_programs(2) + sample
    if PART != "tokens":
        store_state(
            partial_ptr, slot, group, heads, dpairs, tl.sum(dkeys, 0), tl.sum(dvalues, 0), GROUP, WIDTH, VALUE_WIDTH
        )
    if HAS_PARAMETER and PART != "sums":
        store_dparameter(dparameter_ptr, parameter_ptr, slot, group, heads, tl.sum(dparameter, 0), GROUP, D, WIDTH)


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
    dparameter_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    tokens,
    heads,
    each,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    STATS: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """dk, dv and the gradient of the keys' weights, in programs laid out as in `reduce`; dv is among the "sums"."""
    group = tl.program_id(0)
    sample = tl.program_id(2)
    scales = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    dpairs, dkeys, dvalues = load_state(dstate_ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    if PRODUCT == "bfloat16":
        dpairs = dpairs.to(tl.bfloat16)
    dparameter = tl.zeros([BLOCK, GROUP, WIDTH], tl.float32)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < last
        x = load_tile(k_ptr, k_strides, sample, n, valid, group, heads, GROUP, D, WIDTH, WIDE)
        x = spread(x, MAP, PRODUCT)
        value = load_tile(v_ptr, v_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
        lift, factor = norms(x, scales, stats_ptr, sample, tokens, n, valid, MAP, STATS, POWER)
        weight = tl.full([BLOCK, GROUP], 1.0, tl.float32)
        if HAS_WEIGHT:
            weight_at, known = numbers(weight_ptr, sample, tokens, n, valid, group, heads, GROUP)
            weight = tl.load(weight_at, mask=known, other=0.0).to(tl.float32)
        psi = features(x, lift, scales, MAP, POWER, D, WIDTH)
        if PART != "tokens":
            rotated = turned(psi * factor[:, None, None], rotary_ptr, n, valid, tokens, False, D, WIDTH, ROTARY)
            dv = rows_product(rotated, dpairs, GROUP, VALUE_WIDTH, PRODUCT)
        if PART != "sums":
            d = rows_product(value, tl.trans(dpairs), GROUP, WIDTH, PRODUCT)
            d = turned(d, rotary_ptr, n, valid, tokens, True, D, WIDTH, ROTARY) + dkeys[None, :, :]
        if PART != "tokens" and (HAS_WEIGHT or MAP == "focused"):
            if PART == "sums":
                dweight = tl.sum(dv * value.to(tl.float32), 2) + tl.sum(psi * dkeys[None, :, :], 2) * factor[:, None]
            else:
                dweight = tl.sum(d * psi, 2) * factor[:, None]
            if HAS_WEIGHT:
                at, known = numbers(dweight_ptr, sample, tokens, n, valid, group, heads, GROUP)
                tl.store(at, dweight.to(dweight_ptr.dtype.element_ty), mask=known)
            along = tl.sum(dweight * weight, 1)
        if PART != "tokens":
            if HAS_WEIGHT:
                dv = dv * weight[:, :, None]
            if SHIFT:
                dv += dvalues[None, :, :]
            store_tile(dv_ptr, dv_strides, sample, n, valid, group, heads, dv, GROUP, E, VALUE_WIDTH, WIDE)
        if PART == "sums":
            leave_part(along_ptr, sample, tokens, n, valid, group, heads, along, GROUP)
        if PART == "tokens":
            along = parts(along_ptr, sample, tokens, n, valid, heads, GROUP, GROUPS)
        if PART != "sums":
            if MAP == "focused":
                weight = weight * steepness(lift, factor, valid, POWER)[:, None]
            if HAS_WEIGHT or MAP == "focused":
                d = d * weight[:, :, None]
            if MAP == "focused":
                y = positive(x, scales)
                d = focused_pullback(y, d, along, lift, factor, valid, POWER)
                if HAS_PARAMETER:
                    dparameter += d * y
                dk = tl.where(x > 0, d * scales[None, :, :], 0.0)
            else:
                dk = pullback(x, d, MAP, D, WIDTH)
            store_tile(dk_ptr, dk_strides, sample, n, valid, group, heads, dk, GROUP, D, WIDTH, WIDE)
    if HAS_PARAMETER and PART != "sums":
        slot = tl.program_id(1) * tl.num_programs(2) + sample
        store_dparameter(dparameter_ptr, parameter_ptr, slot, group, heads, tl.sum(dparameter, 0), GROUP, D, WIDTH)
