"""Forward kernels of fused linear attention: `reduce` sums keys and values to a state, `apply` lets queries read it.

Tensors are [B, N, heads, D]; a program takes a run of tokens of one head of one sample, some BLOCK at a time. The state
is, for each sample and head, S [WIDTH, VALUE_WIDTH], s [WIDTH] and m [VALUE_WIDTH], in this order in float32.
"""

import triton
import triton.language as tl

from ..fused_rows import load_tokens, product, row_offsets, start_of, store_tokens
from .fused_maps import features, lengths, normalizer, turned


@triton.jit
def load_state(state_ptr, at, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """S, s and m of state number `at`."""
    d = tl.arange(0, WIDTH)
    e = tl.arange(0, VALUE_WIDTH)
    start = state_ptr + at.to(tl.int64) * (WIDTH * VALUE_WIDTH + WIDTH + VALUE_WIDTH)
    pairs = tl.load(start + d[:, None] * VALUE_WIDTH + e[None, :])
    start += WIDTH * VALUE_WIDTH
    return pairs, tl.load(start + d), tl.load(start + WIDTH + e)


@triton.jit
def store_state(state_ptr, at, pairs, keys, values, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)
    e = tl.arange(0, VALUE_WIDTH)
    start = state_ptr + at.to(tl.int64) * (WIDTH * VALUE_WIDTH + WIDTH + VALUE_WIDTH)
    tl.store(start + d[:, None] * VALUE_WIDTH + e[None, :], pairs)
    start += WIDTH * VALUE_WIDTH
    tl.store(start + d, keys)
    tl.store(start + WIDTH + e, values)


@triton.jit
def token_lengths(
    x_ptr,
    parameter_ptr,
    stats_ptr,
    at,
    n,
    valid,
    sample,
    head_stride,
    heads,
    tokens,
    MAP: tl.constexpr,
    STATS: tl.constexpr,
    POWER: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
):
    """What `lengths` gives for the focused map: read from `stats_ptr` [B, tokens, 3] with STATS, else computed.

    `x_ptr` points to the first head of the sample.
    """
    top = tl.full(n.shape, 1.0, tl.float32)
    factor = top
    square = top
    if MAP == "focused":
        if STATS:
            stats = stats_ptr + 3 * (sample.to(tl.int64) * tokens + n)
            top = tl.load(stats, mask=valid, other=1.0)
            factor = tl.load(stats + 1, mask=valid, other=1.0)
            square = tl.load(stats + 2, mask=valid, other=1.0)
        else:
            top, factor, square = lengths(
                x_ptr, at, valid, head_stride, parameter_ptr, heads, D, WIDTH, HAS_PARAMETER, POWER
            )
    return top, factor, square


@triton.jit(do_not_specialize=["tokens", "heads"])
def measure(
    x_ptr,
    parameter_ptr,
    stats_ptr,
    strides,
    tokens,
    heads,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    POWER: tl.constexpr,
    WIDE: tl.constexpr,
):
    """What `lengths` gives for the tokens of block program_id(0) of sample program_id(1), as [B, tokens, 3]."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = n < tokens
    sample = tl.program_id(1)
    x = x_ptr + sample.to(tl.int64) * strides[0]
    at = row_offsets(n, strides, WIDE)
    top, factor, square = lengths(x, at, valid, strides[2], parameter_ptr, heads, D, WIDTH, HAS_PARAMETER, POWER)
    stats = stats_ptr + 3 * (sample.to(tl.int64) * tokens + n)
    tl.store(stats, top, mask=valid)
    tl.store(stats + 1, factor, mask=valid)
    tl.store(stats + 2, square, mask=valid)


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
    """Sums over `each` tokens from program_id(1) * each on, of head program_id(0) of sample program_id(2), as state
    [splits, B, heads].
    """
    head = tl.program_id(0)
    sample = tl.program_id(2)
    k = start_of(k_ptr, k_strides, sample, head)
    v = start_of(v_ptr, v_strides, sample, head)
    pairs = tl.zeros([WIDTH, VALUE_WIDTH], tl.float32)
    keys = tl.zeros([WIDTH], tl.float32)
    values = tl.zeros([VALUE_WIDTH], tl.float32)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < last
        k_at = row_offsets(n, k_strides, WIDE)
        top, factor, _ = token_lengths(
            k - head.to(tl.int64) * k_strides[2],
            parameter_ptr,
            stats_ptr,
            k_at,
            n,
            valid,
            sample,
            k_strides[2],
            heads,
            tokens,
            MAP,
            STATS,
            POWER,
            D,
            WIDTH,
            HAS_PARAMETER,
        )
        x = load_tokens(k, k_at, valid, D, WIDTH).to(tl.float32)
        value = load_tokens(v, row_offsets(n, v_strides, WIDE), valid, E, VALUE_WIDTH)
        psi = features(x, top, factor, parameter_ptr, head, MAP, POWER, D, WIDTH, HAS_PARAMETER)
        if HAS_WEIGHT:
            at = weight_ptr + (sample.to(tl.int64) * tokens + n) * heads + head
            psi = psi * tl.load(at, mask=valid, other=0.0).to(tl.float32)[:, None]
        psi = tl.where(valid[:, None], psi, 0.0)
        keys += tl.sum(psi, 0)
        values += tl.sum(value.to(tl.float32), 0)
        psi = turned(psi, rotary_ptr, n, valid, tokens, False, D, WIDTH, ROTARY)
        pairs += product(tl.trans(psi), value, PRODUCT)
    slot = (tl.program_id(1) * tl.num_programs(2) + sample) * heads + head
    store_state(partial_ptr, slot, pairs, keys, values, WIDTH, VALUE_WIDTH)


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
    BLOCK: tl.constexpr,
):
    """Sums over splits, [splits, states, ENTRIES], times `factor`, and times `mean` from entry PAIRS (m) on."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < ENTRIES
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(0, splits):
        start = (split * states + tl.program_id(1)).to(tl.int64) * ENTRIES
        total += tl.load(partial_ptr + start + at, mask=inside, other=0.0)
    total = total * tl.where(at < PAIRS, factor, mean)
    tl.store(state_ptr + tl.program_id(1).to(tl.int64) * ENTRIES + at, total, mask=inside)


@triton.jit(do_not_specialize=["tokens", "heads"])
def apply(
    q_ptr,
    parameter_ptr,
    rotary_ptr,
    state_ptr,
    out_ptr,
    q_strides,
    out_strides,
    tokens,
    heads,
    eps,
    BLOCK: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    NORMALIZER: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Output of block program_id(0) of sample program_id(2), head program_id(1), or all heads one after another where
    the map looks across heads.
    """
    sample = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = n < tokens
    q_at = row_offsets(n, q_strides, WIDE)
    out_at = row_offsets(n, out_strides, WIDE)
    first = tl.program_id(1)
    last = first + 1
    if MAP == "focused":
        first = first * 0
        last = heads
    q = start_of(q_ptr, q_strides, sample, first * 0)
    top, factor, _ = token_lengths(
        q,
        parameter_ptr,
        q,
        q_at,
        n,
        valid,
        sample,
        q_strides[2],
        heads,
        tokens,
        MAP,
        False,
        POWER,
        D,
        WIDTH,
        HAS_PARAMETER,
    )
    for head in range(first, last):
        pairs, keys, values = load_state(state_ptr, sample * heads + head, WIDTH, VALUE_WIDTH)
        x = load_tokens(start_of(q_ptr, q_strides, sample, head), q_at, valid, D, WIDTH).to(tl.float32)
        phi = features(x, top, factor, parameter_ptr, head, MAP, POWER, D, WIDTH, HAS_PARAMETER)
        alpha, beta = normalizer(tl.sum(phi * keys[None, :], 1), eps, NORMALIZER)
        phi = turned(phi, rotary_ptr, n, valid, tokens, False, D, WIDTH, ROTARY)
        out = product(phi, pairs, PRODUCT) * alpha[:, None] + beta[:, None] * values[None, :]
        store_tokens(start_of(out_ptr, out_strides, sample, head), out_at, out, valid, E, VALUE_WIDTH)
