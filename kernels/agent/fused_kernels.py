"""Kernels of fused agent attention. Tensors are [B, N, heads, D]; agents fit in one tile of AGENTS rows.

Forward: `gather` takes the softmax over a split of the keys, `merge` joins the splits into V_A [B, heads, agents, E]
and the log-sum-exp [B, heads, agents], and `read` lets each query read the agents. Both biases are [heads, agents,
tokens], so that they are loaded in vectors of tokens.
"""

import triton
import triton.language as tl

from ..fused_rows import LN2, LOG2E, load_tokens, product, row_offsets, start_of, store_tokens


@triton.jit
def load_agents(agents_ptr, strides, sample, head, agents, AGENTS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    a = tl.arange(0, AGENTS)
    return load_tokens(start_of(agents_ptr, strides, sample, head), a * strides[1], a < agents, D, WIDTH)


@triton.jit
def load_gathered(ptr, state, agents, AGENTS: tl.constexpr, E: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """V_A of a sample's head, zero in the padding."""
    a = tl.arange(0, AGENTS)
    return load_tokens(ptr + state.to(tl.int64) * agents * E, a * E, a < agents, E, VALUE_WIDTH)


@triton.jit
def load_bias(bias_ptr, head, n, valid, tokens, agents, AGENTS: tl.constexpr):
    """Bias [AGENTS, tokens of a block] in log2 units."""
    a = tl.arange(0, AGENTS)
    at = bias_ptr + (head * agents + a)[:, None] * tokens + n[None, :]
    inside = (a < agents)[:, None] & valid[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32) * LOG2E


@triton.jit
def gather_logits(
    agent,
    k,
    bias_ptr,
    head,
    n,
    valid,
    keys,
    agents,
    scale,
    AGENTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Logits [AGENTS, keys of a block] in log2 units, minus infinity where there is no key."""
    s = product(agent, tl.trans(k), PRODUCT) * scale
    if HAS_BIAS:
        s += load_bias(bias_ptr, head, n, valid, keys, agents, AGENTS)
    return tl.where(valid[None, :], s, float("-inf"))


@triton.jit
def read_weights(
    q,
    agent,
    bias_ptr,
    head,
    n,
    valid,
    queries,
    agents,
    scale,
    AGENTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Weights [queries of a block, AGENTS] of the agents."""
    a = tl.arange(0, AGENTS)
    s = product(q, tl.trans(agent), PRODUCT) * scale
    if HAS_BIAS:
        s += tl.trans(load_bias(bias_ptr, head, n, valid, queries, agents, AGENTS))
    s = tl.where((a < agents)[None, :], s, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit(do_not_specialize=["heads", "agents", "blocks"])
def gather(
    k_ptr,
    v_ptr,
    agents_ptr,
    bias_ptr,
    partial_ptr,
    terms_ptr,
    k_strides,
    v_strides,
    agents_strides,
    keys,
    heads,
    agents,
    blocks,
    scale,
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
    """What agents gather from `blocks` blocks of keys, those of split program_id(1), of head program_id(0) of sample
    program_id(2).

    `partial_ptr` is [splits, B, heads, AGENTS, VALUE_WIDTH], unnormalised, and `terms_ptr` [splits, B, heads, 2,
    AGENTS]: the largest logit and the sum of weights.
    """
    head = tl.program_id(0)
    sample = tl.program_id(2)
    a = tl.arange(0, AGENTS)
    e = tl.arange(0, VALUE_WIDTH)
    agent = load_agents(agents_ptr, agents_strides, sample, head, agents, AGENTS, D, WIDTH)
    k_start = start_of(k_ptr, k_strides, sample, head)
    v_start = start_of(v_ptr, v_strides, sample, head)
    top = tl.full([AGENTS], -1e30, tl.float32)
    total = tl.zeros([AGENTS], tl.float32)
    gathered = tl.zeros([AGENTS, VALUE_WIDTH], tl.float32)
    # Multiples of BLOCK, as Triton sees, so that it loads the bias in vectors.
    first = tl.program_id(1) * blocks * BLOCK
    for start in range(first, tl.minimum(first + blocks * BLOCK, keys), BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < keys
        k = load_tokens(k_start, row_offsets(n, k_strides, WIDE), valid, D, WIDTH)
        v = load_tokens(v_start, row_offsets(n, v_strides, WIDE), valid, E, VALUE_WIDTH)
        s = gather_logits(agent, k, bias_ptr, head, n, valid, keys, agents, scale, AGENTS, HAS_BIAS, PRODUCT)
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        gathered = gathered * shrink[:, None] + product(p, v, PRODUCT)
        top = new_top
    slot = ((tl.program_id(1) * tl.num_programs(2) + sample) * heads + head).to(tl.int64) * AGENTS
    tl.store(partial_ptr + slot * VALUE_WIDTH + a[:, None] * VALUE_WIDTH + e[None, :], gathered)
    tl.store(terms_ptr + 2 * slot + a, top)
    tl.store(terms_ptr + 2 * slot + AGENTS + a, total)


@triton.jit
def split_terms(terms_ptr, state, states, start, splits, AGENTS: tl.constexpr, SPLITS: tl.constexpr):
    """Largest logits and sums of weights [SPLITS, AGENTS] of splits from `start` on."""
    split = start + tl.arange(0, SPLITS)
    at = terms_ptr + 2 * AGENTS * (split * states + state).to(tl.int64)[:, None] + tl.arange(0, AGENTS)[None, :]
    there = (split < splits)[:, None]
    return tl.load(at, mask=there, other=-1e30), tl.load(at + AGENTS, mask=there, other=0.0)


@triton.jit(do_not_specialize=["states", "splits", "agents"])
def merge(
    partial_ptr,
    terms_ptr,
    gathered_ptr,
    lse_ptr,
    states,
    splits,
    agents,
    AGENTS: tl.constexpr,
    E: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """V_A of sample and head program_id(0), COLUMNS columns from program_id(1) on, and the log-sum-exp.

    SPLITS splits are loaded at once.
    """
    state = tl.program_id(0)
    a = tl.arange(0, AGENTS)
    e = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    top = tl.full([AGENTS], -1e30, tl.float32)
    for start in range(0, splits, SPLITS):
        tops, _ = split_terms(terms_ptr, state, states, start, splits, AGENTS, SPLITS)
        top = tl.maximum(top, tl.max(tops, 0))
    total = tl.zeros([AGENTS], tl.float32)
    gathered = tl.zeros([AGENTS, COLUMNS], tl.float32)
    for start in range(0, splits, SPLITS):
        tops, totals = split_terms(terms_ptr, state, states, start, splits, AGENTS, SPLITS)
        weights = tl.exp2(tops - top[None, :])
        total += tl.sum(weights * totals, 0)
        split = start + tl.arange(0, SPLITS)
        rows = (split * states + state).to(tl.int64)[:, None] * AGENTS + a[None, :]
        at = partial_ptr + rows[:, :, None] * VALUE_WIDTH + e[None, None, :]
        parts = tl.load(at, mask=(split < splits)[:, None, None], other=0.0)
        gathered += tl.sum(weights[:, :, None] * parts, 0)
    row = state.to(tl.int64) * agents + a
    inside = (a < agents)[:, None] & (e < E)[None, :]
    tl.store(gathered_ptr + row[:, None] * E + e[None, :], gathered / total[:, None], mask=inside)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + row, (top + tl.log2(total)) * LN2, mask=a < agents)


@triton.jit(do_not_specialize=["heads", "agents", "blocks"])
def read(
    q_ptr,
    agents_ptr,
    bias_ptr,
    gathered_ptr,
    out_ptr,
    q_strides,
    agents_strides,
    out_strides,
    queries,
    heads,
    agents,
    blocks,
    scale,
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
    """Output of `blocks` blocks of queries, split program_id(1), of head program_id(0) of sample program_id(2)."""
    head = tl.program_id(0)
    sample = tl.program_id(2)
    agent = load_agents(agents_ptr, agents_strides, sample, head, agents, AGENTS, D, WIDTH)
    gathered = load_gathered(gathered_ptr, sample * heads + head, agents, AGENTS, E, VALUE_WIDTH)
    q_start = start_of(q_ptr, q_strides, sample, head)
    out_start = start_of(out_ptr, out_strides, sample, head)
    first = tl.program_id(1) * blocks * BLOCK
    for start in range(first, tl.minimum(first + blocks * BLOCK, queries), BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < queries
        q = load_tokens(q_start, row_offsets(n, q_strides, WIDE), valid, D, WIDTH)
        p = read_weights(q, agent, bias_ptr, head, n, valid, queries, agents, scale, AGENTS, HAS_BIAS, PRODUCT)
        out = product(p, gathered, PRODUCT)
        store_tokens(out_start, row_offsets(n, out_strides, WIDE), out, valid, E, VALUE_WIDTH)
