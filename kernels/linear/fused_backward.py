"""Backward kernels of fused linear attention for queries, and for focused keys.

With t = phi0 . s, y = alpha(t) phi S + beta(t) m and d = dy S^T: dphi = alpha d, dt = alpha'(t) (phi . d) +
beta'(t) (dy . m), dphi0 = dt s; dS = sum alpha phi^T dy, ds = sum dt phi0, dm = sum beta dy over queries.

`balance` takes dt from the output, as alpha (phi . d) = dy . (y - beta m): no sum over features stands between the
products and the gradient of a feature, and programs can take few channels each, in few registers. Sums over tokens of
rows are kept apart for each row of a block until the loop ends.
"""

import triton
import triton.language as tl

from ..fused_rows import narrowed, product, start_of
from .fused_maps import (
    LEAST,
    features,
    normalizer,
    normalizer_pullback,
    pullback,
    raised,
    sigmoid,
    softplus,
    turned,
)
from .fused_tiles import load_row, numbers, vectors_at, within


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def balance(
    out_ptr,
    dout_ptr,
    sums_ptr,
    state_ptr,
    dsums_ptr,
    along_ptr,
    out_strides,
    dout_strides,
    tokens,
    heads,
    each,
    eps,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    SHIFT: tl.constexpr,
    NORMALIZER: tl.constexpr,
    FOCUSED: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dt [B, tokens, heads] of `each` tokens from program_id(0) * each on, of sample program_id(1); with FOCUSED also
    the sum of features times their gradients over all heads, [B, tokens].
    """
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    sample = tl.program_id(1)
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, tokens)
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        along = tl.zeros([BLOCK], tl.float32)
        for group in tl.static_range(GROUPS):
            out = load_row(out_ptr, out_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
            dout = load_row(dout_ptr, dout_strides, sample, n, valid, group, heads, GROUP, E, VALUE_WIDTH, WIDE)
            dout = dout.to(tl.float32)
            delta = tl.sum(dout * out.to(tl.float32), 2)
            sums_at, known = numbers(sums_ptr, sample, tokens, n, valid, group, heads, GROUP)
            t = tl.load(sums_at, mask=known, other=1.0)
            alpha, beta = normalizer(t, eps, NORMALIZER)
            dbeta = tl.zeros_like(t)
            if SHIFT:
                values_at, there = vectors_at(
                    state_ptr, sample, group, heads, PAIRS + WIDTH, GROUP, VALUE_WIDTH, PAIRS + WIDTH + VALUE_WIDTH
                )
                values = tl.load(values_at, mask=there, other=0.0)
                dbeta = tl.sum(dout * values[None, :, :], 2)
                delta -= beta * dbeta
            dt = normalizer_pullback(t, alpha, eps, delta, dbeta, NORMALIZER)
            dsums_at, _ = numbers(dsums_ptr, sample, tokens, n, valid, group, heads, GROUP)
            tl.store(dsums_at, dt, mask=known)
            if FOCUSED:
                along += tl.sum(tl.where(known, delta + dt * t, 0.0), 1)
        if FOCUSED:
            tl.store(along_ptr + sample.to(tl.int64) * tokens + n, along, mask=valid)


@triton.jit
def channels_at(
    ptr,
    strides,
    sample,
    head,
    n,
    valid,
    heads,
    chunk,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Pointers to a chunk of channels of tokens `n` of a group of heads from `head` on, [n, GROUP * CHUNK], and where
    there are any.
    """
    column = tl.arange(0, GROUP * CHUNK)
    of_group = column // CHUNK
    c = chunk * CHUNK + column % CHUNK
    rows = (n.to(tl.int64) if WIDE else n) * strides[1]
    columns = (of_group.to(tl.int64) if WIDE else of_group) * strides[2] + c
    at = start_of(ptr, strides, sample, head) + rows[:, None] + columns[None, :]
    return at, valid[:, None] & ((head + of_group < heads) & (c < D))[None, :]


@triton.jit
def bring(
    ptr,
    strides,
    sample,
    head,
    start,
    last,
    heads,
    chunk,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    MAP: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Rows of a block of tokens from `start` on, or of some tokens if that is `last`, for the turn after this.

    Focused rows are held by threads as `spread` of fused_tiles.py has them. What a loop takes along from one turn to
    the next keeps compilers from giving it a way of its own to be held.
    """
    n = tl.arange(0, BLOCK) + (tl.minimum(start, last - BLOCK) if EVEN else start)
    at, known = channels_at(ptr, strides, sample, head, n, within(n, last, EVEN), heads, chunk, GROUP, CHUNK, D, WIDE)
    x = tl.load(at, mask=known, other=0.0)
    if MAP == "focused" and PRODUCT != "ieee":
        c = tl.arange(0, GROUP * CHUNK)
        x = tl.dot(x, (c[:, None] == c[None, :]).to(x.dtype))
    return x


@triton.jit
def unbent(z, d, along, lift, factor, POWER: tl.constexpr):
    """Gradient of y = `positive(x)`, a tile, from that of the focused features times factor * lift * POWER.

    With z = y / |y| and r = z^POWER, the features are r |y| / |r| = r * factor; `along` is the sum of their gradients
    times features over all heads.
    """
    along = along * lift
    steep = factor * lift
    tilt = along * steep * steep * POWER
    bent = raised(z, POWER - 1) * (d - raised(z, POWER) * tilt[:, None, None])
    return bent + z * along[:, None, None]


@triton.jit
def halved(x):
    """A tile [n, ...] with rows that a thread holds of a product, n and n + 8, added."""
    return tl.sum(tl.reshape(x, (x.shape[0] // 16, 2, 8, x.shape[1], x.shape[2])), 1)


@triton.jit
def summed(x):
    """Sum over tokens of what `halved` gives."""
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_tokens(
    x_ptr,
    parameter_ptr,
    rotary_ptr,
    stats_ptr,
    share_ptr,
    dsums_ptr,
    along_ptr,
    matrix_ptr,
    rows_ptr,
    dx_ptr,
    partial_ptr,
    dparameter_ptr,
    x_strides,
    rows_strides,
    dx_strides,
    tokens,
    heads,
    each,
    eps,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    SHIFT: tl.constexpr,
    NORMALIZER: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_SHARE: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradient of CHUNK channels of a group of heads of `each` queries, and the state's from these in states as
    `reduce` lays them out; or, not QUERIES, that of focused keys.

    Args:
        share_ptr: t of queries, or the weights of keys, [B, tokens, heads].
        along_ptr: sums over heads of features times their gradients, [B, PARTS, tokens].
        matrix_ptr, rows_ptr: state and the output's gradient for queries, the state's gradient and values for keys.
    """
    CHUNKS: tl.constexpr = WIDTH // CHUNK
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    head = tl.program_id(0) // CHUNKS * GROUP
    chunk = tl.program_id(0) % CHUNKS
    sample = tl.program_id(2)
    c = chunk * CHUNK + tl.arange(0, CHUNK)
    of_group = head + tl.arange(0, GROUP)
    inside = (of_group < heads)[:, None] & (c < D)[None, :]
    scales = tl.where(inside, 1.0, 0.0)
    if HAS_PARAMETER:
        parameter = tl.load(parameter_ptr + of_group[:, None] * D + c[None, :], mask=inside, other=0.0).to(tl.float32)
        scales = scales / softplus(parameter)
    row = tl.arange(0, GROUP * VALUE_WIDTH)
    column = tl.arange(0, GROUP * CHUNK)
    diagonal = (row // VALUE_WIDTH)[:, None] == (column // CHUNK)[None, :]
    diagonal = diagonal & (head + column // CHUNK < heads)[None, :]
    state = (sample.to(tl.int64) * heads + head) * ENTRIES
    corner = (column // CHUNK) * ENTRIES + (chunk * CHUNK + column % CHUNK) * VALUE_WIDTH
    pairs_at = corner[None, :] + (row % VALUE_WIDTH)[:, None]
    matrix = tl.load(matrix_ptr + state + pairs_at, mask=diagonal, other=0.0)
    if PRODUCT == "bfloat16":
        matrix = matrix.to(tl.bfloat16)
    vector_at = (tl.arange(0, GROUP) * ENTRIES + PAIRS)[:, None] + c[None, :]
    vector = tl.load(matrix_ptr + state + vector_at, mask=inside, other=0.0)
    dpairs = tl.zeros([GROUP * VALUE_WIDTH, GROUP * CHUNK], tl.float32)
    dkeys = tl.zeros([BLOCK // 16, 8, GROUP, CHUNK], tl.float32)
    dvalues = tl.zeros([BLOCK // 16, 8, GROUP, VALUE_WIDTH], tl.float32)
    dparameter = tl.zeros([BLOCK // 16, 8, GROUP, CHUNK], tl.float32)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    ahead = bring(
        x_ptr, x_strides, sample, head, first, last, heads, chunk, BLOCK, GROUP, CHUNK, D, MAP, EVEN, WIDE, PRODUCT
    )
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        x = tl.reshape(ahead, (BLOCK, GROUP, CHUNK)).to(tl.float32)
        at, known = channels_at(rows_ptr, rows_strides, sample, head, n, valid, heads, 0, GROUP, VALUE_WIDTH, E, WIDE)
        rows = tl.load(at, mask=known, other=0.0)
        d = tl.reshape(product(rows, matrix, PRODUCT), (BLOCK, GROUP, CHUNK))
        token = sample.to(tl.int64) * tokens + n
        lift = tl.full([BLOCK], 1.0, tl.float32)
        factor = lift
        if MAP == "focused":
            lift = tl.load(stats_ptr + 2 * token, mask=valid, other=1.0)
            # Zero where there is no token.
            factor = tl.load(stats_ptr + 2 * token + 1, mask=valid, other=0.0)
            along = tl.zeros([BLOCK], tl.float32)
            for part in tl.static_range(PARTS):
                at = along_ptr + (sample.to(tl.int64) * PARTS + part) * tokens + n
                along += tl.load(at, mask=valid, other=0.0)
            u = tl.maximum(x, 0.0) + LEAST
            z = u * scales[None, :, :] * lift[:, None, None]
            phi = raised(z, POWER)
        else:
            phi = features(x, lift, scales, MAP, POWER, D, CHUNK)
        alpha = factor[:, None]
        dt = alpha
        if HAS_SHARE:
            of_head = token[:, None] * heads + of_group[None, :]
            known = valid[:, None] & (of_group < heads)[None, :]
            share = tl.load(share_ptr + of_head, mask=known, other=1.0).to(tl.float32)
            if QUERIES:
                alpha, beta = normalizer(share, eps, NORMALIZER)
                alpha = alpha * factor[:, None]
                dt = tl.load(dsums_ptr + of_head, mask=known, other=0.0) * factor[:, None]
            else:
                alpha = share * factor[:, None]
                dt = alpha
        if QUERIES:
            dkeys += halved(phi * dt[:, :, None])
            rotated = turned(phi, rotary_ptr, n, valid, tokens, c, False, D, ROTARY) * alpha[:, :, None]
            if SHIFT:
                of_rows = tl.reshape(rows.to(tl.float32), (BLOCK, GROUP, VALUE_WIDTH))
                dvalues += halved(of_rows * beta[:, :, None])
        if MAP == "focused":
            steep = (lift * POWER)[:, None]
            alpha, dt = alpha * steep, dt * steep
        d = turned(d * alpha[:, :, None], rotary_ptr, n, valid, tokens, c, True, D, ROTARY)
        d += dt[:, :, None] * vector[None, :, :]
        if MAP == "focused":
            d = unbent(z, d, along, lift, factor, POWER)
            if HAS_PARAMETER:
                dparameter += halved(d * u)
            # u, unlike x, is needed anyway; it is greater where x > 0.
            dx = tl.where(u > LEAST, d * scales[None, :, :], 0.0)
        else:
            dx = pullback(x, d, MAP, D, CHUNK)
        if QUERIES:
            dpairs += product(tl.trans(rows), tl.reshape(rotated, (BLOCK, GROUP * CHUNK)), PRODUCT)
        at, known = channels_at(dx_ptr, dx_strides, sample, head, n, valid, heads, chunk, GROUP, CHUNK, D, WIDE)
        tl.store(at, narrowed(tl.reshape(dx, (BLOCK, GROUP * CHUNK)), dx_ptr), mask=known)
        ahead = bring(
            x_ptr,
            x_strides,
            sample,
            head,
            start + BLOCK,
            last,
            heads,
            chunk,
            BLOCK,
            GROUP,
            CHUNK,
            D,
            MAP,
            EVEN,
            WIDE,
            PRODUCT,
        )
    slot = tl.program_id(1) * tl.num_programs(2) + sample
    if QUERIES:
        state = partial_ptr + (slot.to(tl.int64) * heads + head) * ENTRIES
        tl.store(state + pairs_at, dpairs, mask=diagonal)
        tl.store(state + vector_at, summed(dkeys), mask=(of_group < heads)[:, None])
        e = tl.arange(0, VALUE_WIDTH)
        values_at = (tl.arange(0, GROUP) * ENTRIES + PAIRS + WIDTH)[:, None] + e[None, :]
        known = (of_group < heads)[:, None] & ((e < VALUE_WIDTH) & (chunk == 0))[None, :]
        tl.store(state + values_at, summed(dvalues), mask=known)
    if HAS_PARAMETER:
        at = dparameter_ptr + (slot.to(tl.int64) * heads + of_group)[:, None] * D + c[None, :]
        tl.store(at, -summed(dparameter) * scales * scales * sigmoid(parameter), mask=inside)
