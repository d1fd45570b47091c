"""Backward kernel of the focused map with small whole powers: keys, values and the parameter in one pass over both.

Programs are laid out as those of fused_focused.py, each warp a head of a run of tokens. With u = relu(x) + LEAST and
scales c, a token's g = factor * lift^POWER and the state's gradient times c^POWER in its rows, dS and ds, psi is
g u^POWER, dv = psi dS and d = v dS^T + ds. With A, the sum of psi . d over all heads,
dk = POWER w d + A lift^2 c^2 u (1 - POWER (c^(POWER - 1) w)^2) where w = g u^(POWER - 1).
"""

import triton
import triton.language as tl

from ..fused_rows import narrowed, product
from .fused_focused import heads_at, heads_inside
from .fused_maps import LEAST, head_scales, raised, sigmoid
from .fused_tiles import within


@triton.jit
def bands_at(
    ptr,
    strides,
    sample,
    start,
    last,
    heads,
    BAND: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Pointers to tokens from `start` on as rows, [BLOCK * GROUP, WIDTH], BAND of each head, then the next BAND, and
    where there are any.

    Warps take rows of a matrix in turn, so many that each gets those of one head.
    """
    row = tl.arange(0, BLOCK * GROUP)
    n = start + row // (BAND * GROUP) * BAND + row % BAND
    head = row // BAND % GROUP
    c = tl.arange(0, WIDTH)
    if WIDE:
        at = n.to(tl.int64) * strides[1] + head.to(tl.int64) * strides[2]
    else:
        at = n * strides[1] + head * strides[2]
    known = (within(n, last, EVEN) & (head < heads))[:, None] & (c < D)[None, :]
    return ptr + sample.to(tl.int64) * strides[0] + at[:, None] + c[None, :], known


@triton.jit
def from_bands(x, BAND: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of `bands_at` as [GROUP, BLOCK, WIDTH]."""
    bands = tl.permute(tl.reshape(x, (BLOCK // BAND, GROUP, BAND, x.shape[1])), (1, 0, 2, 3))
    return tl.reshape(bands, (GROUP, BLOCK, x.shape[1]))


@triton.jit
def to_bands(x, BAND: tl.constexpr):
    """[GROUP, BLOCK, WIDTH] as rows of `bands_at`."""
    bands = tl.reshape(x, (x.shape[0], x.shape[1] // BAND, BAND, x.shape[2]))
    return tl.reshape(tl.permute(bands, (1, 0, 2, 3)), (x.shape[0] * x.shape[1], x.shape[2]))


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_packed_keys(
    k_ptr,
    v_ptr,
    parameter_ptr,
    stats_ptr,
    dstate_ptr,
    dk_ptr,
    dv_ptr,
    dparameter_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    tokens,
    heads,
    each,
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dk and dv of the tokens that `reduce_focused` would take, and the parameter's gradient by programs."""
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    # Rows that a warp stores at once.
    BAND: tl.constexpr = 256 // WIDTH
    VALUE_BAND: tl.constexpr = 256 // VALUE_WIDTH
    sample = tl.program_id(1)
    scales = head_scales(parameter_ptr, 0, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    squares, steep = scales * scales, raised(scales, POWER)
    bends = squares if POWER == 3 else scales
    head = tl.arange(0, GROUP)
    c = tl.arange(0, WIDTH)
    e = tl.arange(0, VALUE_WIDTH)
    state = dstate_ptr + (sample.to(tl.int64) * heads + head) * ENTRIES
    of_heads = (head < heads)[:, None]
    pairs_at = state[:, None, None] + (c * VALUE_WIDTH)[None, :, None] + e[None, None, :]
    dpairs = tl.load(pairs_at, mask=of_heads[:, :, None], other=0.0) * steep[:, :, None]
    channels = of_heads & (c < D)[None, :]
    dkeys = tl.load(state[:, None] + PAIRS + c[None, :], mask=channels, other=0.0) * steep
    if PRODUCT == "bfloat16":
        dpairs = dpairs.to(tl.bfloat16)
    turned = tl.trans(dpairs, (0, 2, 1))
    # Times one, keys are held by threads as the products that they meet. As a plain product of many warps it comes
    # straight from shared memory.
    PLAIN: tl.constexpr = GROUP >= 4
    one = (c[:, None] == c[None, :]).to(k_ptr.dtype.element_ty)
    if not PLAIN:
        one = tl.broadcast_to(one[None, :, :], (GROUP, WIDTH, WIDTH))
    dparameter = tl.zeros([GROUP, 8, WIDTH], tl.float32)
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, tokens)
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        inside = heads_inside(valid, heads, GROUP, D, WIDTH)
        values_inside = heads_inside(valid, heads, GROUP, E, VALUE_WIDTH)
        if PLAIN:
            at, known = bands_at(k_ptr, k_strides, sample, start, last, heads, 16, BLOCK, GROUP, D, WIDTH, EVEN, WIDE)
            x = from_bands(tl.dot(tl.load(at, mask=known, other=0.0), one), 16, GROUP, BLOCK)
        else:
            x = tl.load(heads_at(k_ptr, k_strides, sample, n, GROUP, WIDTH, WIDE), mask=inside, other=0.0)
            x = tl.dot(x, one)
        at = heads_at(v_ptr, v_strides, sample, n, GROUP, VALUE_WIDTH, WIDE)
        value = tl.load(at, mask=values_inside, other=0.0)
        at = stats_ptr + 2 * (sample.to(tl.int64) * tokens + n)
        lift = tl.load(at, mask=valid, other=1.0)
        # Zero where there is no token.
        share = tl.load(at + 1, mask=valid, other=0.0) * raised(lift, POWER)
        u = tl.maximum(x, 0.0) + LEAST
        bent = u * u if POWER == 3 else u
        bent = bent * share[None, :, None]
        dv = product(bent * u, dpairs, PRODUCT)
        at, known = bands_at(
            dv_ptr, dv_strides, sample, start, last, heads, VALUE_BAND, BLOCK, GROUP, E, VALUE_WIDTH, EVEN, WIDE
        )
        tl.store(at, to_bands(narrowed(dv, dv_ptr), VALUE_BAND), mask=known)
        d = product(value, turned, PRODUCT) + dkeys[:, None, :]
        d = d * bent
        along = tl.sum(tl.sum(d * u, 2), 0) * lift * lift
        bent = bent * bends[:, None, :]
        tilt = along[None, :, None] - bent * bent * (along * POWER)[None, :, None]
        dk = d * POWER + u * squares[:, None, :] * tilt
        if HAS_PARAMETER:
            dparameter += tl.sum(tl.reshape(dk * u, (GROUP, BLOCK // 8, 8, WIDTH)), 1)
        # It is greater where x > 0.
        dk = tl.where(u > LEAST, dk, 0.0)
        at, known = bands_at(dk_ptr, dk_strides, sample, start, last, heads, BAND, BLOCK, GROUP, D, WIDTH, EVEN, WIDE)
        tl.store(at, to_bands(narrowed(dk, dk_ptr), BAND), mask=known)
    if HAS_PARAMETER:
        slot = tl.program_id(0) * tl.num_programs(1) + sample
        parameter = tl.load(parameter_ptr + head[:, None] * D + c[None, :], mask=channels, other=0.0).to(tl.float32)
        at = dparameter_ptr + (slot.to(tl.int64) * heads + head)[:, None] * D + c[None, :]
        tl.store(at, -tl.sum(dparameter, 1) * scales * sigmoid(parameter), mask=channels)
