"""Backward kernels of fused linear attention for values, keys and keys' weights.

With the state's gradient, dv = weight psi dS + dm and d = v dS^T + ds: dpsi = weight d and dweight = psi . d.
"""

import triton
import triton.language as tl

from ..fused_rows import narrowed
from .fused_backward import bring, channels_at, halved, summed
from .fused_maps import LEAST, features, head_scales, pullback, raised, sigmoid, turned
from .fused_tiles import load_row, load_state, load_tile, numbers, rows_product, store_tile, within


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_keys(
    k_ptr,
    v_ptr,
    weight_ptr,
    rotary_ptr,
    dstate_ptr,
    dk_ptr,
    dv_ptr,
    dweight_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    tokens,
    heads,
    each,
    BLOCK: tl.constexpr,
    MAP: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROTARY: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """dv, dk and the gradient of the keys' weights, in programs laid out as in `reduce`; not for focused keys."""
    group = tl.program_id(0)
    sample = tl.program_id(2)
    c = tl.arange(0, WIDTH)
    dpairs, dkeys, dvalues = load_state(dstate_ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    if PRODUCT == "bfloat16":
        dpairs = dpairs.to(tl.bfloat16)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        x = load_tile(k_ptr, k_strides, sample, n, valid, group, heads, GROUP, D, WIDTH, WIDE)
        x = x.to(tl.float32)
        value = load_tile(v_ptr, v_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
        one = tl.full([BLOCK], 1.0, tl.float32)
        psi = features(x, one, one, MAP, 1, D, WIDTH)
        rotated = turned(psi, rotary_ptr, n, valid, tokens, c, False, D, ROTARY)
        dv = rows_product(rotated, dpairs, GROUP, VALUE_WIDTH, PRODUCT)
        weight = tl.full([BLOCK, GROUP], 1.0, tl.float32)
        if HAS_WEIGHT:
            weight_at, known = numbers(weight_ptr, sample, tokens, n, valid, group, heads, GROUP)
            weight = tl.load(weight_at, mask=known, other=0.0).to(tl.float32)
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


@triton.jit
def raised_times(x, y, POWER: tl.constexpr):
    """x ** POWER * y of x >= 0, of small powers without another that compilers would keep."""
    if POWER == 3:
        return x * y * x * x
    elif POWER == 2:
        return x * y * x
    else:
        return raised(x, POWER) * y


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_focused_keys(
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
    dparameter_ptr,
    along_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    tokens,
    heads,
    each,
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,
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
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What `differentiate_keys` gives, of focused keys, and by programs the parameter's gradient.

    Norms reach over all heads: unless a tile holds them TOGETHER, instead of dk and the parameter's gradient it leaves
    the group's part of the sum of features times their gradients, [B, groups, tokens].
    """
    group = tl.program_id(0)
    sample = tl.program_id(2)
    c = tl.arange(0, WIDTH)
    scales = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    dpairs, dkeys, dvalues = load_state(dstate_ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    if PRODUCT == "bfloat16":
        dpairs = dpairs.to(tl.bfloat16)
    dparameter = tl.zeros([BLOCK // 16, 8, GROUP, WIDTH], tl.float32)
    head = group * GROUP
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    ahead = bring(
        k_ptr, k_strides, sample, head, first, last, heads, 0, BLOCK, GROUP, WIDTH, D, "focused", EVEN, WIDE, PRODUCT
    )
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        x = tl.reshape(ahead, (BLOCK, GROUP, WIDTH)).to(tl.float32)
        token = sample.to(tl.int64) * tokens + n
        lift = tl.load(stats_ptr + 2 * token, mask=valid, other=1.0)
        # Zero where there is no token.
        factor = tl.load(stats_ptr + 2 * token + 1, mask=valid, other=0.0)
        share = factor[:, None]
        if HAS_WEIGHT:
            weight_at, known = numbers(weight_ptr, sample, tokens, n, valid, group, heads, GROUP)
            share = share * tl.load(weight_at, mask=known, other=0.0).to(tl.float32)
        u = tl.maximum(x, 0.0) + LEAST
        z = u * scales[None, :, :] * lift[:, None, None]
        psi = raised_times(z, share[:, :, None], POWER)
        rotated = turned(psi, rotary_ptr, n, valid, tokens, c, False, D, ROTARY)
        dv = rows_product(rotated, dpairs, GROUP, VALUE_WIDTH, PRODUCT)
        if SHIFT:
            dv += dvalues[None, :, :]
        at, known = channels_at(dv_ptr, dv_strides, sample, head, n, valid, heads, 0, GROUP, VALUE_WIDTH, E, WIDE)
        tl.store(at, narrowed(tl.reshape(dv, (BLOCK, GROUP * VALUE_WIDTH)), dv_ptr), mask=known)
        value = load_row(v_ptr, v_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
        d = rows_product(value, tl.trans(dpairs), GROUP, WIDTH, PRODUCT)
        d = turned(d, rotary_ptr, n, valid, tokens, c, True, D, ROTARY) + dkeys[None, :, :]
        # With z d in its place, z^POWER need not be kept.
        d = z * d
        dshare = tl.sum(raised_times(z, d, POWER - 1), 2)
        if HAS_WEIGHT:
            at, known = numbers(dweight_ptr, sample, tokens, n, valid, group, heads, GROUP)
            tl.store(at, (dshare * factor[:, None]).to(dweight_ptr.dtype.element_ty), mask=known)
        along = tl.sum(dshare * share, 1)
        if TOGETHER:
            along = along * lift
            steep = factor * lift
            tilt = along * steep * steep * POWER
            if POWER == 3:
                tilted = d * (share * (lift * POWER)[:, None])[:, :, None] + along[:, None, None]
                square = z * z
                d = z * (tilted - square * (square * tilt[:, None, None]))
            else:
                tilted = d * (share * (lift * POWER)[:, None])[:, :, None] - raised(z, POWER + 1) * tilt[:, None, None]
                d = raised(z, POWER - 2) * tilted + z * along[:, None, None]
            if HAS_PARAMETER:
                dparameter += halved(d * u)
            # It is greater where x > 0.
            dk = tl.where(u > LEAST, d * scales[None, :, :], 0.0)
            at, known = channels_at(dk_ptr, dk_strides, sample, head, n, valid, heads, 0, GROUP, WIDTH, D, WIDE)
            tl.store(at, narrowed(tl.reshape(dk, (BLOCK, GROUP * WIDTH)), dk_ptr), mask=known)
        else:
            at = along_ptr + (sample.to(tl.int64) * tl.num_programs(0) + group) * tokens + n
            tl.store(at, along, mask=valid)
        ahead = bring(
            k_ptr,
            k_strides,
            sample,
            head,
            start + BLOCK,
            last,
            heads,
            0,
            BLOCK,
            GROUP,
            WIDTH,
            D,
            "focused",
            EVEN,
            WIDE,
            PRODUCT,
        )
    if TOGETHER and HAS_PARAMETER:
        slot = tl.program_id(1) * tl.num_programs(2) + sample
        of_group = tl.arange(0, GROUP)
        inside = (of_group < heads)[:, None] & (c < D)[None, :]
        at = (slot.to(tl.int64) * heads + of_group)[:, None] * D + c[None, :]
        parameter = tl.load(parameter_ptr + of_group[:, None] * D + c[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(dparameter_ptr + at, -summed(dparameter) * scales * scales * sigmoid(parameter), mask=inside)
