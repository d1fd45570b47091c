"""Forward kernels of the focused map with small whole powers: norms, features and products of all heads in one pass.

A program takes a run of tokens of all heads of a sample, BLOCK at a time, [GROUP, BLOCK, WIDTH], and each warp a head:
but for the norms, warps need nothing of each other. With u = relu(x) + LEAST and scales c, features are u^POWER times
c^POWER, which multiplies the state's rows, times one number of a token. So bfloat16 entries stay packed in pairs, and
norms are products too, of u^2 and u^(2 POWER) with powers of c. The state, its partial sums, the norms and t are those
of fused_kernels.py.
"""

import triton
import triton.language as tl

from ..fused_rows import narrowed, product
from .fused_maps import LEAST, SMALLEST, head_scales, normalizer, raised
from .fused_tiles import within

# Of sums of y^(2 POWER), that those of tokens without positive channels stay normal numbers.
BOOST = tl.constexpr(2.0**20)
ROOT = tl.constexpr(2.0**10)


@triton.jit
def heads_at(ptr, strides, sample, n, GROUP: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Pointers to tokens `n` of all heads, [GROUP, n, WIDTH]."""
    head = tl.arange(0, GROUP)
    rows = (n.to(tl.int64) if WIDE else n) * strides[1]
    columns = (head.to(tl.int64) if WIDE else head)[:, None] * strides[2] + tl.arange(0, WIDTH)[None, :]
    return ptr + sample.to(tl.int64) * strides[0] + rows[None, :, None] + columns[:, None, :]


@triton.jit
def heads_inside(valid, heads, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    channels = (tl.arange(0, GROUP) < heads)[:, None] & (tl.arange(0, WIDTH) < D)[None, :]
    return valid[None, :, None] & channels[:, None, :]


@triton.jit
def unscaled(x, PRODUCT: tl.constexpr):
    """relu(x) + LEAST, of bfloat16 in bfloat16."""
    if PRODUCT == "bfloat16":
        # Triton has no maximum of packed numbers; 1 * relu(x) + 1e-6 as a fused product, as sm_80 has no sums of them.
        return tl.inline_asm_elementwise(
            """{.reg .b32 zero, one, least; mov.b32 zero, 0; mov.b32 one, 0x3F803F80; mov.b32 least, 0x35863586;
            max.bf16x2 $0, $1, zero; fma.rn.bf16x2 $0, $0, one, least;}""",
            "=r,r",
            [x],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    else:
        return tl.maximum(x.to(tl.float32), 0.0) + LEAST


@triton.jit
def columns(vector, FIRST: tl.constexpr, PRODUCT: tl.constexpr):
    """[GROUP, WIDTH] as a matrix [GROUP, WIDTH, 8]; columns FIRST and FIRST + 1 together are the vector, others 0."""
    c = tl.arange(0, 8)[None, None, :]
    high = vector
    if PRODUCT == "bfloat16":
        high = vector.to(tl.bfloat16).to(tl.float32)
    low = vector - high
    return tl.where(c == FIRST, high[:, :, None], tl.where(c == FIRST + 1, low[:, :, None], 0.0))


@triton.jit
def length_columns(scales, POWER: tl.constexpr, PRODUCT: tl.constexpr):
    """What u^2 and u^(2 POWER) are multiplied by for the sums of y^2, and BOOST times those of y^(2 POWER)."""
    steep = raised(scales, POWER)
    squares, powers = columns(scales * scales, 0, PRODUCT), columns(steep * steep * BOOST, 4, PRODUCT)
    if PRODUCT == "bfloat16":
        return squares.to(tl.bfloat16), powers.to(tl.bfloat16)
    else:
        return squares, powers


@triton.jit
def all_norms(
    u, bent, squares, powers, stats_ptr, sample, tokens, n, valid, POWER: tl.constexpr, PRODUCT: tl.constexpr
):
    """The number of each token that its `bent` = u^POWER remain to be multiplied by; leaves lift and factor."""
    sums = product(u * u, squares, PRODUCT)
    sums += product(bent * bent, powers, PRODUCT)
    square, steep = tl.split(tl.sum(tl.sum(tl.reshape(sums, (sums.shape[0], n.shape[0], 2, 4)), 3), 0))
    lift = tl.rsqrt(square)
    length = square * lift
    share = length * tl.rsqrt(tl.maximum(steep, SMALLEST)) * ROOT
    at = stats_ptr + 2 * (sample.to(tl.int64) * tokens + n)
    tl.store(at, lift, mask=valid)
    tl.store(at + 1, share * raised(length, POWER), mask=valid)
    return share


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def reduce_focused(
    k_ptr,
    v_ptr,
    parameter_ptr,
    stats_ptr,
    partial_ptr,
    k_strides,
    v_strides,
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
):
    """Sums over `each` tokens from program_id(0) * each on, of sample program_id(1), as state [splits, B, heads]."""
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    sample = tl.program_id(1)
    scales = head_scales(parameter_ptr, 0, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    squares, powers = length_columns(scales, POWER, PRODUCT)
    pairs = tl.zeros([GROUP, VALUE_WIDTH, WIDTH], tl.float32)
    keys = tl.zeros([GROUP, 16, WIDTH], tl.float32)
    ones = tl.full([GROUP, 16, BLOCK], 1.0, tl.float32)
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        inside = heads_inside(valid, heads, GROUP, D, WIDTH)
        x = tl.load(heads_at(k_ptr, k_strides, sample, n, GROUP, WIDTH, WIDE), mask=inside, other=0.0)
        # Turned over as pointers, for only what a product takes as it was loaded is loaded ahead.
        at = tl.trans(heads_at(v_ptr, v_strides, sample, n, GROUP, VALUE_WIDTH, WIDE), (0, 2, 1))
        inside = tl.trans(heads_inside(valid, heads, GROUP, E, VALUE_WIDTH), (0, 2, 1))
        value = tl.load(at, mask=inside, other=0.0)
        u = unscaled(x, PRODUCT)
        bent = raised(u, POWER)
        share = all_norms(u, bent, squares, powers, stats_ptr, sample, tokens, n, valid, POWER, PRODUCT)
        psi = bent * tl.where(valid, share, 0.0).to(bent.dtype)[None, :, None]
        pairs += product(value, psi, PRODUCT)
        keys += product(ones, psi, PRODUCT)
    steep = raised(scales, POWER)
    head = tl.arange(0, GROUP)
    d = tl.arange(0, WIDTH)
    e = tl.arange(0, VALUE_WIDTH)
    slot = tl.program_id(0) * tl.num_programs(1) + sample
    state = partial_ptr + (slot.to(tl.int64) * heads + head) * ENTRIES
    known = (head < heads)[:, None]
    state_at = state[:, None, None] + (d * VALUE_WIDTH)[None, None, :] + e[None, :, None]
    tl.store(state_at, pairs * steep[:, None, :], mask=known[:, :, None])
    tl.store(state[:, None] + PAIRS + d[None, :], tl.max(keys, 1) * steep, mask=known)
    tl.store(state[:, None] + PAIRS + WIDTH + e[None, :], tl.zeros([GROUP, VALUE_WIDTH], tl.float32), mask=known)


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def apply_focused(
    q_ptr,
    parameter_ptr,
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
    """Output of the tokens that `reduce_focused` would take, and t for the gradient, [B, tokens, heads]."""
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    sample = tl.program_id(1)
    scales = head_scales(parameter_ptr, 0, heads, GROUP, D, WIDTH, HAS_PARAMETER)
    squares, powers = length_columns(scales, POWER, PRODUCT)
    steep = raised(scales, POWER)
    head = tl.arange(0, GROUP)
    d = tl.arange(0, WIDTH)
    e = tl.arange(0, VALUE_WIDTH)
    state = state_ptr + (sample.to(tl.int64) * heads + head) * ENTRIES
    known = (head < heads)[:, None]
    pairs_at = state[:, None, None] + (d * VALUE_WIDTH)[None, :, None] + e[None, None, :]
    pairs = tl.load(pairs_at, mask=known[:, :, None], other=0.0) * steep[:, :, None]
    keys = columns(tl.load(state[:, None] + PAIRS + d[None, :], mask=known, other=0.0) * steep, 0, PRODUCT)
    if PRODUCT == "bfloat16":
        pairs, keys = pairs.to(tl.bfloat16), keys.to(tl.bfloat16)
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        inside = heads_inside(valid, heads, GROUP, D, WIDTH)
        x = tl.load(heads_at(q_ptr, q_strides, sample, n, GROUP, WIDTH, WIDE), mask=inside, other=0.0)
        u = unscaled(x, PRODUCT)
        bent = raised(u, POWER)
        share = all_norms(u, bent, squares, powers, stats_ptr, sample, tokens, n, valid, POWER, PRODUCT)
        t = tl.sum(product(bent, keys, PRODUCT), 2) * share[None, :]
        sums_at = sums_ptr + (sample.to(tl.int64) * tokens + n)[None, :] * heads + head[:, None]
        tl.store(sums_at, t, mask=known & valid[None, :])
        alpha, _ = normalizer(t, eps, NORMALIZER)
        out = product(bent, pairs, PRODUCT) * (alpha * share[None, :])[:, :, None]
        inside = heads_inside(valid, heads, GROUP, E, VALUE_WIDTH)
        at = heads_at(out_ptr, out_strides, sample, n, GROUP, VALUE_WIDTH, WIDE)
        tl.store(at, narrowed(out, out_ptr), mask=inside)
