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
    focused_pullback,
    normalizer,
    normalizer_pullback,
    positive,
    pullback,
    raised,
    sigmoid,
    softplus,
    steepness,
    turned_rows,
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
def load_channels(ptr, strides, sample, head, n, valid, c, D: tl.constexpr, WIDE: tl.constexpr):
    """Channels `c` of tokens `n` of a head, [n, c]."""
    at, inside = channels_at(ptr, strides, sample, head, n, valid, c, D, WIDE)
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def channels_at(ptr, strides, sample, head, n, valid, c, D: tl.constexpr, WIDE: tl.constexpr):
    rows = (n.to(tl.int64) if WIDE else n) * strides[1]
    return start_of(ptr, strides, sample, head) + rows[:, None] + c[None, :], valid[:, None] & (c < D)[None, :]


@triton.jit
def spread_channels(x, MAP: tl.constexpr, PRODUCT: tl.constexpr):
    """As `spread` of fused_tiles.py."""
    if MAP == "focused" and PRODUCT != "ieee":
        c = tl.arange(0, x.shape[1])
        return tl.dot(x, (c[:, None] == c[None, :]).to(x.dtype))
    else:
        return x.to(tl.float32)


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
):
    """Gradient of CHUNK channels of a head of `each` queries, and the state's from these in states as `reduce` lays
    them out; or, not QUERIES, that of focused keys.

    Args:
        share_ptr: t of queries, or the weights of keys, [B, tokens, heads].
        along_ptr: sums over heads of features times their gradients, [B, tokens, PARTS].
        matrix_ptr, rows_ptr: state and the output's gradient for queries, the state's gradient and values for keys.
    """
    CHUNKS: tl.constexpr = WIDTH // CHUNK
    PAIRS: tl.constexpr = WIDTH * VALUE_WIDTH
    ENTRIES: tl.constexpr = PAIRS + WIDTH + VALUE_WIDTH
    head = tl.program_id(0) // CHUNKS
    chunk = tl.program_id(0) % CHUNKS
    sample = tl.program_id(2)
    c = chunk * CHUNK + tl.arange(0, CHUNK)
    e = tl.arange(0, VALUE_WIDTH)
    scales = tl.where(c < D, 1.0, 0.0)
    if HAS_PARAMETER:
        parameter = tl.load(parameter_ptr + head * D + c, mask=c < D, other=0.0).to(tl.float32)
        scales = scales / softplus(parameter)
    state = (sample.to(tl.int64) * heads + head) * ENTRIES
    matrix = tl.load(matrix_ptr + state + c[None, :] * VALUE_WIDTH + e[:, None])
    if PRODUCT == "bfloat16":
        matrix = matrix.to(tl.bfloat16)
    vector = tl.load(matrix_ptr + state + PAIRS + c)
    dpairs = tl.zeros([CHUNK, VALUE_WIDTH], tl.float32)
    dkeys = tl.zeros([BLOCK, CHUNK], tl.float32)
    dvalues = tl.zeros([BLOCK, VALUE_WIDTH], tl.float32)
    dparameter = tl.zeros([BLOCK, CHUNK], tl.float32)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = within(n, last, EVEN)
        x = load_channels(x_ptr, x_strides, sample, head, n, valid, c, D, WIDE)
        x = spread_channels(x, MAP, PRODUCT)
        rows = load_channels(rows_ptr, rows_strides, sample, head, n, valid, e, E, WIDE)
        token = sample.to(tl.int64) * tokens + n
        of_head = token * heads + head
        lift = tl.full([BLOCK], 1.0, tl.float32)
        factor = lift
        if MAP == "focused":
            lift = tl.load(stats_ptr + 2 * token, mask=valid, other=1.0)
            # Zero where there is no token.
            factor = tl.load(stats_ptr + 2 * token + 1, mask=valid, other=0.0)
            along = tl.zeros([BLOCK], tl.float32)
            for part in tl.static_range(PARTS):
                along += tl.load(along_ptr + token * PARTS + part, mask=valid, other=0.0)
            y = positive(x, scales)
            z = y * lift[:, None]
            phi = raised(z, POWER)
        else:
            whole = features(x[:, None, :], lift, scales[None, :], MAP, POWER, D, CHUNK)
            phi = tl.reshape(whole, (BLOCK, CHUNK))
        alpha = factor
        dt = factor
        if HAS_SHARE:
            share = tl.load(share_ptr + of_head, mask=valid, other=1.0).to(tl.float32)
            if QUERIES:
                alpha, beta = normalizer(share, eps, NORMALIZER)
                alpha = alpha * factor
                dt = tl.load(dsums_ptr + of_head, mask=valid, other=0.0) * factor
            else:
                alpha = share * factor
                dt = alpha
        if QUERIES:
            dkeys += phi * dt[:, None]
            rotated = turned_rows(phi, rotary_ptr, n, valid, tokens, c, False, D, ROTARY)
            dpairs += product(tl.trans(rotated * alpha[:, None]), rows, PRODUCT)
            if SHIFT:
                dvalues += rows.to(tl.float32) * beta[:, None]
        d = product(rows, matrix, PRODUCT)
        if MAP == "focused":
            steep = steepness(lift, 1.0, POWER)
            alpha, dt = alpha * steep, dt * steep
        d = turned_rows(d * alpha[:, None], rotary_ptr, n, valid, tokens, c, True, D, ROTARY)
        d += dt[:, None] * vector[None, :]
        if MAP == "focused":
            d = focused_pullback(z, d, along, lift, factor, POWER)
            if HAS_PARAMETER:
                dparameter += d * y
            # y, unlike x, is needed anyway; it is greater where x > 0.
            dx = tl.where(y > (scales * LEAST)[None, :], d * scales[None, :], 0.0)
        else:
            dx = tl.reshape(pullback(x[:, None, :], d[:, None, :], MAP, D, CHUNK), (BLOCK, CHUNK))
        at, inside = channels_at(dx_ptr, dx_strides, sample, head, n, valid, c, D, WIDE)
        tl.store(at, narrowed(dx, dx_ptr), mask=inside)
    slot = tl.program_id(1) * tl.num_programs(2) + sample
    if QUERIES:
        state = partial_ptr + (slot.to(tl.int64) * heads + head) * ENTRIES
        tl.store(state + c[:, None] * VALUE_WIDTH + e[None, :], dpairs)
        tl.store(state + PAIRS + c, tl.sum(dkeys, 0))
        tl.store(state + PAIRS + WIDTH + e, tl.sum(dvalues, 0), mask=(e < VALUE_WIDTH) & (chunk == 0))
    if HAS_PARAMETER:
        at = dparameter_ptr + (slot.to(tl.int64) * heads + head) * D + c
        tl.store(at, -tl.sum(dparameter, 0) * scales * sigmoid(parameter), mask=c < D)
