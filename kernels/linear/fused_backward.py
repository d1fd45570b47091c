"""Backward kernels of fused linear attention.

With t = phi0 . s, y = alpha(t) phi S + beta(t) m and d = dy S^T: dphi = alpha d, dt = alpha'(t) (phi . d) +
beta'(t) (dy . m), dphi0 = dt s; dS = sum alpha phi^T dy, ds = sum dt phi0, dm = sum beta dy over queries.
`differentiate_state` gives those sums, `differentiate_queries` dq and `differentiate_keys` dk and dv from dS, ds, dm.
"""

import triton
import triton.language as tl

from ..fused_rows import load_tokens, product, row_offsets, start_of, store_tokens
from .fused_kernels import load_state, store_state, token_lengths
from .fused_maps import (
    features,
    focused_pullback,
    normalizer,
    normalizer_pullback,
    positive,
    pullback,
    sigmoid,
    softplus,
    turned,
)


@triton.jit
def query_terms(
    x,
    dout,
    top,
    factor,
    parameter_ptr,
    head,
    rotary_ptr,
    n,
    valid,
    tokens,
    pairs,
    keys,
    values,
    eps,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    NORMALIZER: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """phi0, alpha * phi, beta, dt and the gradient of phi0."""
    phi = features(x, top, factor, parameter_ptr, head, MAP, POWER, D, WIDTH, HAS_PARAMETER)
    t = tl.sum(phi * keys[None, :], 1)
    alpha, beta = normalizer(t, eps, NORMALIZER)
    rotated = turned(phi, rotary_ptr, n, valid, tokens, False, D, WIDTH, ROTARY)
    d = product(dout, tl.trans(pairs), PRODUCT)
    dalpha = tl.sum(rotated * d, 1)
    dbeta = tl.sum(dout.to(tl.float32) * values[None, :], 1)
    dt = tl.where(valid, normalizer_pullback(t, eps, dalpha, dbeta, NORMALIZER), 0.0)
    back = turned(d * alpha[:, None], rotary_ptr, n, valid, tokens, True, D, WIDTH, ROTARY)
    return phi, rotated * alpha[:, None], beta, dt, back + dt[:, None] * keys[None, :]


@triton.jit(do_not_specialize=["tokens", "heads", "each"])
def differentiate_state(
    q_ptr,
    parameter_ptr,
    rotary_ptr,
    stats_ptr,
    state_ptr,
    dout_ptr,
    dq_ptr,
    partial_ptr,
    q_strides,
    dout_strides,
    dq_strides,
    tokens,
    heads,
    each,
    eps,
    BLOCK: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    NORMALIZER: tl.constexpr,
    STATS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    ROTARY: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """The state's gradient from `each` queries, laid out as in `reduce`, and dq unless the map looks across heads."""
    head = tl.program_id(0)
    sample = tl.program_id(2)
    q = start_of(q_ptr, q_strides, sample, head)
    douts = start_of(dout_ptr, dout_strides, sample, head)
    pairs, keys, values = load_state(state_ptr, sample * heads + head, WIDTH, VALUE_WIDTH)
    dpairs = tl.zeros([WIDTH, VALUE_WIDTH], tl.float32)
    dkeys = tl.zeros([WIDTH], tl.float32)
    dvalues = tl.zeros([VALUE_WIDTH], tl.float32)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, tokens)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < last
        q_at = row_offsets(n, q_strides, WIDE)
        top, factor, _ = token_lengths(
            q - head.to(tl.int64) * q_strides[2],
            parameter_ptr,
            stats_ptr,
            q_at,
            n,
            valid,
            sample,
            q_strides[2],
            heads,
            tokens,
            MAP,
            STATS,
            POWER,
            D,
            WIDTH,
            HAS_PARAMETER,
        )
        x = load_tokens(q, q_at, valid, D, WIDTH).to(tl.float32)
        dout = load_tokens(douts, row_offsets(n, dout_strides, WIDE), valid, E, VALUE_WIDTH)
        phi, weighted, beta, dt, dphi = query_terms(
            x,
            dout,
            top,
            factor,
            parameter_ptr,
            head,
            rotary_ptr,
            n,
            valid,
            tokens,
            pairs,
            keys,
            values,
            eps,
            MAP,
            POWER,
            NORMALIZER,
            D,
            WIDTH,
            HAS_PARAMETER,
            ROTARY,
            PRODUCT,
        )
        dpairs += product(tl.trans(tl.where(valid[:, None], weighted, 0.0)), dout, PRODUCT)
        dkeys += tl.sum(dt[:, None] * phi, 0)
        dvalues += tl.sum(beta[:, None] * dout.to(tl.float32), 0)
        if MAP != "focused":
            dq = pullback(x, dphi, MAP, D, WIDTH)
            at = row_offsets(n, dq_strides, WIDE)
            store_tokens(start_of(dq_ptr, dq_strides, sample, head), at, dq, valid, D, WIDTH)
    slot = (tl.program_id(1) * tl.num_programs(2) + sample) * heads + head
    store_state(partial_ptr, slot, dpairs, dkeys, dvalues, WIDTH, VALUE_WIDTH)


@triton.jit
def store_focused(
    dx_ptr,
    at,
    dparameter_ptr,
    slot,
    parameter_ptr,
    head,
    x,
    d,
    along,
    top,
    factor,
    valid,
    POWER: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
):
    """Gradient of a head's tokens under the focused map, and a block's sum for that of the head's parameters."""
    y = positive(x, parameter_ptr, head, D, WIDTH, HAS_PARAMETER)
    dy = focused_pullback(d, along, top, factor, y, POWER)
    if HAS_PARAMETER:
        c = tl.arange(0, WIDTH)
        parameter = tl.load(parameter_ptr + head * D + c, mask=c < D, other=0.0).to(tl.float32)
        dy = dy * (1 / softplus(parameter))[None, :]
        total = -tl.sum(tl.where(valid[:, None], dy * y, 0.0), 0) * sigmoid(parameter)
        tl.store(dparameter_ptr + slot * D + c, total, mask=c < D)
    store_tokens(dx_ptr, at, tl.where(x > 0, dy, 0.0), valid, D, WIDTH)


@triton.jit(do_not_specialize=["tokens", "heads"])
def differentiate_queries(
    q_ptr,
    parameter_ptr,
    rotary_ptr,
    state_ptr,
    dout_ptr,
    dq_ptr,
    dparameter_ptr,
    q_strides,
    dout_strides,
    dq_strides,
    tokens,
    heads,
    eps,
    BLOCK: tl.constexpr,
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
    """dq of block program_id(0) of sample program_id(1) under the focused map, whose gradient needs all heads twice.

    `dparameter_ptr` is [B, blocks, heads, D].
    """
    sample = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = n < tokens
    q_at = row_offsets(n, q_strides, WIDE)
    dout_at = row_offsets(n, dout_strides, WIDE)
    dq_at = row_offsets(n, dq_strides, WIDE)
    q = q_ptr + sample.to(tl.int64) * q_strides[0]
    top, factor, square = token_lengths(
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
        "focused",
        False,
        POWER,
        D,
        WIDTH,
        HAS_PARAMETER,
    )
    along = tl.zeros([BLOCK], tl.float32)
    for step in range(0, 2 * heads):
        head = step % heads
        pairs, keys, values = load_state(state_ptr, sample * heads + head, WIDTH, VALUE_WIDTH)
        x = load_tokens(start_of(q_ptr, q_strides, sample, head), q_at, valid, D, WIDTH).to(tl.float32)
        dout = load_tokens(start_of(dout_ptr, dout_strides, sample, head), dout_at, valid, E, VALUE_WIDTH)
        phi, _, _, _, dphi = query_terms(
            x,
            dout,
            top,
            factor,
            parameter_ptr,
            head,
            rotary_ptr,
            n,
            valid,
            tokens,
            pairs,
            keys,
            values,
            eps,
            "focused",
            POWER,
            NORMALIZER,
            D,
            WIDTH,
            HAS_PARAMETER,
            ROTARY,
            PRODUCT,
        )
        if step < heads:
            along += tl.sum(dphi * phi, 1) / (factor * square)
        else:
            slot = ((sample * tl.num_programs(0) + tl.program_id(0)) * heads + head).to(tl.int64)
            store_focused(
                start_of(dq_ptr, dq_strides, sample, head),
                dq_at,
                dparameter_ptr,
                slot,
                parameter_ptr,
                head,
                x,
                dphi,
                along,
                top,
                factor,
                valid,
                POWER,
                D,
                WIDTH,
                HAS_PARAMETER,
            )


@triton.jit(do_not_specialize=["tokens", "heads"])
def differentiate_keys(
    k_ptr,
    v_ptr,
    weight_ptr,
    parameter_ptr,
    rotary_ptr,
    dstate_ptr,
    dk_ptr,
    dv_ptr,
    dweight_ptr,
    dparameter_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    tokens,
    heads,
    BLOCK: tl.constexpr,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
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
    """dk, dv and the gradient of the keys' weights, of block program_id(0) of sample program_id(2), head program_id(1),
    or all heads, twice, where the map looks across heads. `dparameter_ptr` is [B, blocks, heads, D].
    """
    sample = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = n < tokens
    k_at = row_offsets(n, k_strides, WIDE)
    v_at = row_offsets(n, v_strides, WIDE)
    first = tl.program_id(1)
    steps = 1
    if MAP == "focused":
        first = first * 0
        steps = 2 * heads
    k = k_ptr + sample.to(tl.int64) * k_strides[0]
    top, factor, square = token_lengths(
        k,
        parameter_ptr,
        k,
        k_at,
        n,
        valid,
        sample,
        k_strides[2],
        heads,
        tokens,
        MAP,
        False,
        POWER,
        D,
        WIDTH,
        HAS_PARAMETER,
    )
    along = tl.zeros([BLOCK], tl.float32)
    for step in range(0, steps):
        head = first + step % heads
        dpairs, dkeys, dvalues = load_state(dstate_ptr, sample * heads + head, WIDTH, VALUE_WIDTH)
        x = load_tokens(start_of(k_ptr, k_strides, sample, head), k_at, valid, D, WIDTH).to(tl.float32)
        value = load_tokens(start_of(v_ptr, v_strides, sample, head), v_at, valid, E, VALUE_WIDTH)
        psi = features(x, top, factor, parameter_ptr, head, MAP, POWER, D, WIDTH, HAS_PARAMETER)
        d = product(value, tl.trans(dpairs), PRODUCT)
        d = turned(d, rotary_ptr, n, valid, tokens, True, D, WIDTH, ROTARY) + dkeys[None, :]
        weighted = psi
        weight_at = (sample.to(tl.int64) * tokens + n) * heads + head
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + weight_at, mask=valid, other=0.0).to(tl.float32)
            dweight = tl.sum(d * psi, 1)
            d = d * weight[:, None]
            weighted = psi * weight[:, None]
        if MAP == "focused":
            if step < heads:
                along += tl.sum(d * psi, 1) / (factor * square)
            else:
                slot = ((sample * tl.num_programs(0) + tl.program_id(0)) * heads + head).to(tl.int64)
                store_focused(
                    start_of(dk_ptr, dk_strides, sample, head),
                    row_offsets(n, dk_strides, WIDE),
                    dparameter_ptr,
                    slot,
                    parameter_ptr,
                    head,
                    x,
                    d,
                    along,
                    top,
                    factor,
                    valid,
                    POWER,
                    D,
                    WIDTH,
                    HAS_PARAMETER,
                )
        else:
            dk = pullback(x, d, MAP, D, WIDTH)
            dk_at = row_offsets(n, dk_strides, WIDE)
            store_tokens(start_of(dk_ptr, dk_strides, sample, head), dk_at, dk, valid, D, WIDTH)
        if step + heads >= steps:
            if HAS_WEIGHT:
                tl.store(dweight_ptr + weight_at, dweight.to(dweight_ptr.dtype.element_ty), mask=valid)
            weighted = turned(weighted, rotary_ptr, n, valid, tokens, False, D, WIDTH, ROTARY)
            dv = product(weighted, dpairs, PRODUCT) + dvalues[None, :]
            dv_at = row_offsets(n, dv_strides, WIDE)
            store_tokens(start_of(dv_ptr, dv_strides, sample, head), dv_at, dv, valid, E, VALUE_WIDTH)
