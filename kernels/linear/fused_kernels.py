"""Forward kernels of fused linear attention: `reduce` sums keys and values to a state, `apply` lets queries read it.

Tensors are [B, N, heads, D]. A program takes a run of tokens of a group of heads of one sample, BLOCK at a time. The
state is, for each sample and head, S [WIDTH, VALUE_WIDTH], s [WIDTH] and m [VALUE_WIDTH], in this order in float32.
Sums over tokens of rows are kept apart for each row of a block until the loop ends: threads need not meet in it.
"""

import triton
import triton.language as tl

from ..fused_rows import product
from .fused_maps import features, head_scales, lengths, normalizer, positive, raised, turned
from .fused_tiles import (
    load_row,
    load_state,
    load_tile,
    numbers,
    pairs_product,
    rows_product,
    spread,
    store_state,
    store_tile,
    within,
)


@triton.jit
def norms(x, scales, stats_ptr, sample, tokens, n, valid, MAP: tl.constexpr, STATS: tl.constexpr, POWER: tl.constexpr):
    """`lift` and `factor` of the focused map's `features`, read from `stats_ptr` [B, tokens, 2] with STATS, else taken
    from a tile of all heads and left there; ones for other maps.
    """
    lift = tl.full(n.shape, 1.0, tl.float32)
    factor = lift
    if MAP == "focused":
        at = stats_ptr + 2 * (sample.to(tl.int64) * tokens + n)
        if STATS:
            lift = tl.load(at, mask=valid, other=1.0)
            factor = tl.load(at + 1, mask=valid, other=1.0)
        else:
            square, steep = lengths(positive(x, scales), POWER)
            lift = tl.rsqrt(square)
            factor = square * lift * tl.rsqrt(steep)
            tl.store(at, lift, mask=valid)
            tl.store(at + 1, factor, mask=valid)
    return lift, factor


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def measure(
    x_ptr,
    parameter_ptr,
    stats_ptr,
    strides,
    tokens,
    heads,
    each,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    POWER: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`norms` of `each` tokens from program_id(0) * each on, of sample program_id(1), as [B, tokens, 2]."""
    sample = tl.program_id(1)
    scales = head_scales(parameter_ptr, 0, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, tokens)
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        for group in tl.static_range(GROUPS):
            x = load_row(x_ptr, strides, sample, n, valid, group, heads, GROUP, D, WIDTH, WIDE).to(tl.float32)
            if GROUPS > 1:
                of_group = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, HAS_PARAMETER)
            else:
                of_group = scales
            more, bent = lengths(positive(x, of_group), POWER)
            if group == 0:
                square, steep = more, bent
            else:
                total = square + more
                steep = steep * raised(square / total, POWER) + bent * raised(more / total, POWER)
                square = total
        at = stats_ptr + 2 * (sample.to(tl.int64) * tokens + n)
        lift = tl.rsqrt(square)
        tl.store(at, lift, mask=valid)
        tl.store(at + 1, square * lift * tl.rsqrt(steep), mask=valid)


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def reduce(
    k_ptr,
    v_ptr,
    weight_ptr,
    parameter_ptr,
    rotary_ptr,
    stats_ptr,
    partial_ptr,
    k_strides,
    v_strides,
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
    """Sums over `each` tokens from program_id(1) * each on, of heads' group program_id(0) of sample program_id(2), as
    state [splits, B, heads]; m only with SHIFT.
    """
    group = tl.program_id(0)
    sample = tl.program_id(2)
    scales = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    pairs = tl.zeros([GROUP * WIDTH, GROUP * VALUE_WIDTH], tl.float32)
    if ROTARY:
        keys = tl.zeros([BLOCK, GROUP, WIDTH], tl.float32)
    else:
        # By a product with ones, in fewer registers.
        keys = tl.zeros([GROUP * WIDTH, 16], tl.float32)
        ones = tl.full([BLOCK, 16], 1.0, tl.float32)
    values = tl.zeros([BLOCK, GROUP, VALUE_WIDTH], tl.float32)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        x = load_tile(k_ptr, k_strides, sample, n, valid, group, heads, GROUP, D, WIDTH, WIDE)
        # With norms to take, too, it would cost a third program of a multiprocessor its registers.
        x = spread(x, MAP if STATS else "", PRODUCT)
        value = load_tile(v_ptr, v_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
        lift, factor = norms(x, scales, stats_ptr, sample, tokens, n, valid, MAP, STATS, POWER)
        psi = features(x, lift, scales, MAP, POWER, D, WIDTH)
        if HAS_WEIGHT:
            at, known = numbers(weight_ptr, sample, tokens, n, valid, group, heads, GROUP)
            psi = psi * (tl.load(at, mask=known, other=0.0).to(tl.float32) * factor[:, None])[:, :, None]
        elif MAP == "focused":
            psi = psi * tl.where(valid, factor, 0.0)[:, None, None]
        else:
            psi = tl.where(valid[:, None, None], psi, 0.0)
        if ROTARY:
            keys += psi
        else:
            keys += product(tl.trans(tl.reshape(psi, (BLOCK, GROUP * WIDTH))), ones, PRODUCT)
        if SHIFT:
            values += value.to(tl.float32)
        psi = turned(psi, rotary_ptr, n, valid, tokens, tl.arange(0, WIDTH), False, D, ROTARY)
        pairs += pairs_product(psi, value, PRODUCT)
    slot = tl.program_id(1) * tl.num_programs(2) + sample
    keys = tl.sum(keys, 0) if ROTARY else tl.reshape(tl.max(keys, 1), (GROUP, WIDTH))
    store_state(partial_ptr, slot, group, heads, pairs, keys, tl.sum(values, 0), GROUP, WIDTH, VALUE_WIDTH)


@triton.jit(do_not_specialize=["states", "splits"])
def settle(
    partial_ptr,
    state_ptr,
    states,
    splits,
    factor,
    mean,
    PAIRS: tl.constexpr,
    ENTRIES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over splits, [splits, states, ENTRIES], times `factor`, and times `mean` from entry PAIRS (m) on."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < ENTRIES
    # Many at a time, as nearly all of the time is waiting for the first.
    rows = tl.zeros([SPLITS, BLOCK], tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        row = (split * states + tl.program_id(1)).to(tl.int64) * ENTRIES
        mask = (split < splits)[:, None] & inside[None, :]
        rows += tl.load(partial_ptr + row[:, None] + at[None, :], mask=mask, other=0.0)
    total = tl.sum(rows, 0) * tl.where(at < PAIRS, factor, mean)
    tl.store(state_ptr + tl.program_id(1).to(tl.int64) * ENTRIES + at, total, mask=inside)


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def apply(
    q_ptr,
    parameter_ptr,
    rotary_ptr,
    stats_ptr,
    state_ptr,
    sums_ptr,
    out_ptr,
    q_strides,
    out_strides,
    tokens,
    heads,
    each,
    eps,
    BLOCK: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    STATS: tl.constexpr,
    SHIFT: tl.constexpr,
    NORMALIZER: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Output of the tokens and heads that `reduce` would take, and t for the gradient, [B, tokens, heads]."""
    group = tl.program_id(0)
    sample = tl.program_id(2)
    scales = head_scales(parameter_ptr, group, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    pairs, keys, values = load_state(state_ptr, sample, group, heads, GROUP, WIDTH, VALUE_WIDTH)
    if PRODUCT == "bfloat16":
        pairs = pairs.to(tl.bfloat16)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        x = load_tile(q_ptr, q_strides, sample, n, valid, group, heads, GROUP, D, WIDTH, WIDE)
        x = spread(x, MAP, PRODUCT)
        lift, factor = norms(x, scales, stats_ptr, sample, tokens, n, valid, MAP, STATS, POWER)
        phi = features(x, lift, scales, MAP, POWER, D, WIDTH)
        t = tl.sum(phi * keys[None, :, :], 2) * factor[:, None]
        sums_at, known = numbers(sums_ptr, sample, tokens, n, valid, group, heads, GROUP)
        tl.store(sums_at, t, mask=known)
        alpha, beta = normalizer(t, eps, NORMALIZER)
        phi = turned(phi, rotary_ptr, n, valid, tokens, tl.arange(0, WIDTH), False, D, ROTARY)
        out = rows_product(phi * (alpha * factor[:, None])[:, :, None], pairs, GROUP, VALUE_WIDTH, PRODUCT)
        if SHIFT:
            out += beta[:, :, None] * values[None, :, :]
        store_tile(out_ptr, out_strides, sample, n, valid, group, heads, out, GROUP, E, VALUE_WIDTH, WIDE)
