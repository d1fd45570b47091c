"""Backward kernel of fused linear attention for focused queries, of the kind of fused_focused.py.

With u and c as there, features are share c^POWER u^POWER for one number `share` of a token. c^POWER multiplies the
state's rows before a program's loop and those of its gradient after it. dt and the sum over heads of features times
their gradients come from the output, as in `balance` of fused_backward.py, which this takes along.
"""

import triton
import triton.language as tl

from ..fused_rows import narrowed, product
from .fused_focused import BOOST, ROOT, heads_at, heads_inside, unscaled
from .fused_focused_keys import bands_at, to_bands
from .fused_maps import LEAST, head_scales, normalizer, normalizer_pullback, raised, sigmoid
from .fused_tiles import within


@triton.jit
def widened(x, PRODUCT: tl.constexpr):
    """A tile [GROUP, n, WIDTH] in float32: a right operand as products leave their results, by a product with one."""
    if PRODUCT == "bfloat16":
        n = tl.arange(0, x.shape[1])
        one = tl.broadcast_to((n[:, None] == n[None, :]).to(x.dtype)[None, :, :], (x.shape[0], x.shape[1], x.shape[1]))
        return tl.dot(one, x)
    else:
        return x.to(tl.float32)


@triton.jit
def row_products(x, y, PRODUCT: tl.constexpr):
    """Sums over channels of x * y, [GROUP, n]; of bfloat16 their products are rounded, as y is."""
    if PRODUCT == "bfloat16":
        first = tl.arange(0, 8)[None, None, :] == 0
        one = tl.broadcast_to(first.to(x.dtype), (x.shape[0], x.shape[2], 8))
        return tl.sum(tl.dot(x * y, one), 2)
    else:
        return tl.sum(x.to(tl.float32) * y.to(tl.float32), 2)


@triton.jit
def over_rows(x):
    """A tile [GROUP, n, WIDTH] summed over those rows that a thread holds of a product."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // 8, 8, x.shape[2])), 1)


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_focused_queries(
    q_ptr,
    parameter_ptr,
    stats_ptr,
    state_ptr,
    sums_ptr,
    out_ptr,
    dout_ptr,
    dq_ptr,
    partial_ptr,
    dparameter_ptr,
    q_strides,
    out_strides,
    dout_strides,
    dq_strides,
    tokens,
    heads,
    each,
    eps,
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,
    NORMALIZER: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """dq of the tokens that `apply_focused` would take, and from these the state's gradient, as state [splits, B,
    heads], and the parameter's.
    """
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    # Rows that a warp stores at once.
    BAND: tl.constexpr = 256 // WIDTH
    sample = tl.program_id(1)
    scales = head_scales(parameter_ptr, 0, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    squares = scales * scales
    steep = raised(scales, POWER)
    # Where no channel is positive, a token's numbers are great, and BOOST is taken from them.
    powers = steep * steep * BOOST
    head = tl.arange(0, GROUP)
    d = tl.arange(0, WIDTH)
    e = tl.arange(0, VALUE_WIDTH)
    there = (head < heads)[:, None]
    pairs_at = (head * ENTRIES)[:, None, None] + (d * VALUE_WIDTH)[None, :, None] + e[None, None, :]
    keys_at = (head * ENTRIES + PAIRS)[:, None] + d[None, :]
    state = state_ptr + sample.to(tl.int64) * heads * ENTRIES
    pairs = tl.load(state + pairs_at, mask=there[:, :, None], other=0.0) * steep[:, :, None]
    keys = tl.load(state + keys_at, mask=there, other=0.0) * steep
    if PRODUCT == "bfloat16":
        pairs = pairs.to(tl.bfloat16)
    dpairs = tl.zeros([GROUP, WIDTH, VALUE_WIDTH], tl.float32)
    dkeys = tl.zeros([GROUP, 8, WIDTH], tl.float32)
    dparameter = tl.zeros([GROUP, 8, WIDTH], tl.float32)
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        inside = heads_inside(valid, heads, GROUP, D, WIDTH)
        x = tl.load(heads_at(q_ptr, q_strides, sample, n, GROUP, WIDTH, WIDE), mask=inside, other=0.0)
        inside = heads_inside(valid, heads, GROUP, E, VALUE_WIDTH)
        out = tl.load(heads_at(out_ptr, out_strides, sample, n, GROUP, VALUE_WIDTH, WIDE), mask=inside, other=0.0)
        at = heads_at(dout_ptr, dout_strides, sample, n, GROUP, VALUE_WIDTH, WIDE)
        dout = tl.load(at, mask=inside, other=0.0)
        token = sample.to(tl.int64) * tokens + n
        known = there & valid[None, :]
        t = tl.load(sums_ptr + token[None, :] * heads + head[:, None], mask=known, other=1.0)
        lift = tl.load(stats_ptr + 2 * token, mask=valid, other=1.0)
        # Zero where there is no token.
        share = tl.load(stats_ptr + 2 * token + 1, mask=valid, other=0.0) * raised(lift, POWER)
        alpha, _ = normalizer(t, eps, NORMALIZER)
        delta = row_products(dout, out, PRODUCT)
        dt = normalizer_pullback(t, alpha, eps, delta, tl.zeros_like(t), NORMALIZER)
        along = tl.sum(tl.where(known, delta + dt * t, 0.0), 0) * lift * lift
        tilt = along * POWER * raised(share * (1 / ROOT), 2)
        alpha, dt = alpha * share[None, :], dt * share[None, :]
        u = unscaled(x, PRODUCT)
        bent = raised(u, POWER)
        dbent = product(dout, tl.trans(pairs, (0, 2, 1)), PRODUCT) * (alpha * POWER)[:, :, None]
        dbent += (dt * POWER)[:, :, None] * keys[:, None, :]
        bent = widened(bent, PRODUCT)
        dpairs += product(tl.trans(bent * alpha[:, :, None], (0, 2, 1)), dout, PRODUCT)
        dkeys += over_rows(bent * dt[:, :, None])
        dbent -= bent * powers[:, None, :] * tilt[None, :, None]
        u = widened(u, PRODUCT)
        if POWER == 3:
            dbent = dbent * u
        du = (dbent + squares[:, None, :] * along[None, :, None]) * u
        if HAS_PARAMETER:
            dparameter += over_rows(du * u)
        # u is greater where x > 0.
        dx = tl.where(u > LEAST, du, 0.0)
        at, inside = bands_at(dq_ptr, dq_strides, sample, start, last, heads, BAND, BLOCK, GROUP, D, WIDTH, EVEN, WIDE)
        tl.store(at, to_bands(narrowed(dx, dq_ptr), BAND), mask=inside)
    slot = tl.program_id(0) * tl.num_programs(1) + sample
    state = partial_ptr + slot.to(tl.int64) * heads * ENTRIES
    tl.store(state + pairs_at, dpairs * steep[:, :, None], mask=there[:, :, None])
    tl.store(state + keys_at, tl.sum(dkeys, 1) * steep, mask=there)
    values_at = (head * ENTRIES + PAIRS + WIDTH)[:, None] + e[None, :]
    tl.store(state + values_at, tl.zeros([GROUP, VALUE_WIDTH], tl.float32), mask=there)
    if HAS_PARAMETER:
        inside = there & (d < D)[None, :]
        of_channel = head[:, None] * D + d[None, :]
        parameter = tl.load(parameter_ptr + of_channel, mask=inside, other=0.0).to(tl.float32)
        at = dparameter_ptr + slot.to(tl.int64) * heads * D + of_channel
        tl.store(at, -tl.sum(dparameter, 1) * scales * sigmoid(parameter), mask=inside)
