"""Backward kernels of fused agent attention.

`differentiate_queries` gives dq and, from a split of the queries, sums for the gradients of V_A and of the agents;
`differentiate_keys` gives dk and dv, and again sums for the agents. With a bias, each also writes d logits, which are
summed over the batch afterwards.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E, load_tokens, product, row_offsets, start_of, store_tokens
from .fused_kernels import gather_logits, load_agents, load_gathered, read_weights


@triton.jit
def factor(x, PRODUCT: tl.constexpr):
    """A factor of `product` in its dtype, made before it is transposed so that less goes through shared memory."""
    return x.to(tl.bfloat16) if PRODUCT == "bfloat16" else x


@triton.jit
def store_dlogits(ptr, ds, state, n, valid, tokens, agents, AGENTS: tl.constexpr):
    a = tl.arange(0, AGENTS)
    at = ptr + (state.to(tl.int64) * agents + a)[:, None] * tokens + n[None, :]
    tl.store(at, ds.to(ptr.dtype.element_ty), mask=(a < agents)[:, None] & valid[None, :])


@triton.jit(do_not_specialize=["heads", "agents", "blocks"])
def differentiate_queries(
    q_ptr,
    agents_ptr,
    bias_ptr,
    gathered_ptr,
    dout_ptr,
    dq_ptr,
    dgathered_ptr,
    dagents_ptr,
    dlogits_ptr,
    q_strides,
    agents_strides,
    dout_strides,
    dq_strides,
    queries,
    heads,
    agents,
    blocks,
    scale,
    scale_log2,
    AGENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Of `blocks` blocks of queries, split program_id(1), of head program_id(0) of sample program_id(2).

    `dgathered_ptr` is [splits, B, heads, AGENTS, VALUE_WIDTH], `dagents_ptr` [splits, B, heads, AGENTS, WIDTH] without
    the scale, and `dlogits_ptr` [B, heads, agents, queries].
    """
    head = tl.program_id(0)
    sample = tl.program_id(2)
    state = sample * heads + head
    a = tl.arange(0, AGENTS)
    agent = load_agents(agents_ptr, agents_strides, sample, head, agents, AGENTS, D, WIDTH)
    gathered = load_gathered(gathered_ptr, state, agents, AGENTS, E, VALUE_WIDTH)
    q_start = start_of(q_ptr, q_strides, sample, head)
    dout_start = start_of(dout_ptr, dout_strides, sample, head)
    dq_start = start_of(dq_ptr, dq_strides, sample, head)
    dgathered = tl.zeros([AGENTS, VALUE_WIDTH], tl.float32)
    dagents = tl.zeros([AGENTS, WIDTH], tl.float32)
    first = tl.program_id(1) * blocks * BLOCK
    for start in range(first, tl.minimum(first + blocks * BLOCK, queries), BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < queries
        q = load_tokens(q_start, row_offsets(n, q_strides, WIDE), valid, D, WIDTH)
        dout = load_tokens(dout_start, row_offsets(n, dout_strides, WIDE), valid, E, VALUE_WIDTH)
        p = read_weights(q, agent, bias_ptr, head, n, valid, queries, agents, scale_log2, AGENTS, HAS_BIAS, PRODUCT)
        # Rows without a query have dout = 0, so they add nothing.
        dgathered += product(tl.trans(factor(p, PRODUCT)), dout, PRODUCT)
        dp = product(dout, tl.trans(gathered), PRODUCT)
        ds = factor(p * (dp - tl.sum(p * dp, 1)[:, None]), PRODUCT)
        dagents += product(tl.trans(ds), q, PRODUCT)
        dq = product(ds, agent, PRODUCT) * scale
        store_tokens(dq_start, row_offsets(n, dq_strides, WIDE), dq, valid, D, WIDTH)
        if HAS_BIAS:
            store_dlogits(dlogits_ptr, tl.trans(ds), state, n, valid, queries, agents, AGENTS)
    slot = (tl.program_id(1) * tl.num_programs(2) * heads + state).to(tl.int64) * AGENTS
    e = tl.arange(0, VALUE_WIDTH)
    d = tl.arange(0, WIDTH)
    tl.store(dgathered_ptr + slot * VALUE_WIDTH + a[:, None] * VALUE_WIDTH + e[None, :], dgathered)
    tl.store(dagents_ptr + slot * WIDTH + a[:, None] * WIDTH + d[None, :], dagents)


@triton.jit(do_not_specialize=["heads", "agents", "blocks"])
def differentiate_keys(
    k_ptr,
    v_ptr,
    agents_ptr,
    bias_ptr,
    gathered_ptr,
    lse_ptr,
    dgathered_ptr,
    dk_ptr,
    dv_ptr,
    dagents_ptr,
    dlogits_ptr,
    k_strides,
    v_strides,
    agents_strides,
    dk_strides,
    dv_strides,
    keys,
    heads,
    agents,
    blocks,
    scale,
    scale_log2,
    AGENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Of `blocks` blocks of keys, split program_id(1), of head program_id(0) of sample program_id(2).

    `dgathered_ptr` is [B, heads, AGENTS, VALUE_WIDTH], `dagents_ptr` as in `differentiate_queries`, and `dlogits_ptr`
    [B, heads, agents, keys].
    """
    head = tl.program_id(0)
    sample = tl.program_id(2)
    state = sample * heads + head
    a = tl.arange(0, AGENTS)
    agent = load_agents(agents_ptr, agents_strides, sample, head, agents, AGENTS, D, WIDTH)
    gathered = load_gathered(gathered_ptr, state, agents, AGENTS, E, VALUE_WIDTH)
    dgathered = load_gathered(dgathered_ptr, state, AGENTS, AGENTS, VALUE_WIDTH, VALUE_WIDTH)
    delta = tl.sum(gathered * dgathered, 1)
    # Rows of the padding have weights of 0.
    lse2 = tl.load(lse_ptr + state.to(tl.int64) * agents + a, mask=a < agents, other=float("inf")) * LOG2E
    k_start = start_of(k_ptr, k_strides, sample, head)
    v_start = start_of(v_ptr, v_strides, sample, head)
    dk_start = start_of(dk_ptr, dk_strides, sample, head)
    dv_start = start_of(dv_ptr, dv_strides, sample, head)
    dagents = tl.zeros([AGENTS, WIDTH], tl.float32)
    first = tl.program_id(1) * blocks * BLOCK
    for start in range(first, tl.minimum(first + blocks * BLOCK, keys), BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < keys
        k = load_tokens(k_start, row_offsets(n, k_strides, WIDE), valid, D, WIDTH)
        v = load_tokens(v_start, row_offsets(n, v_strides, WIDE), valid, E, VALUE_WIDTH)
        s = gather_logits(agent, k, bias_ptr, head, n, valid, keys, agents, scale_log2, AGENTS, HAS_BIAS, PRODUCT)
        p = tl.exp2(s - lse2[:, None])
        dv = product(tl.trans(factor(p, PRODUCT)), dgathered, PRODUCT)
        ds = factor(p * (product(dgathered, tl.trans(v), PRODUCT) - delta[:, None]), PRODUCT)
        dk = product(tl.trans(ds), agent, PRODUCT) * scale
        dagents += product(ds, k, PRODUCT)
        store_tokens(dk_start, row_offsets(n, dk_strides, WIDE), dk, valid, D, WIDTH)
        store_tokens(dv_start, row_offsets(n, dv_strides, WIDE), dv, valid, E, VALUE_WIDTH)
        if HAS_BIAS:
            store_dlogits(dlogits_ptr, ds, state, n, valid, keys, agents, AGENTS)
    slot = (tl.program_id(1) * tl.num_programs(2) * heads + state).to(tl.int64) * AGENTS
    d = tl.arange(0, WIDTH)
    tl.store(dagents_ptr + slot * WIDTH + a[:, None] * WIDTH + d[None, :], dagents)
