"""Kernels of fused agent attention. Tensors are [B, N, heads, D]; agents fit in one tile of AGENTS rows.

Forward: `gather` takes the softmax over a split of the keys, `merge` joins the splits into V_A [B, heads, AGENTS,
VALUE_WIDTH] and the log-sum-exp [B, heads, AGENTS] in log2 units, and `read` lets each query read the agents.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E, load_tokens, product, row_offsets, start_of, store_tokens


@triton.jit
def load_agents(agents_ptr, strides, sample, head, agents, AGENTS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    a = tl.arange(0, AGENTS)
    return load_tokens(start_of(agents_ptr, strides, sample, head), a * strides[1], a < agents, D, WIDTH)


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
        a = tl.arange(0, AGENTS)
        at = bias_ptr + (head * agents + a)[:, None] * keys + n[None, :]
        inside = (a < agents)[:, None] & valid[None, :]
        s += tl.load(at, mask=inside, other=0.0).to(tl.float32) * LOG2E
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
        at = bias_ptr + (head * queries + n)[:, None] * agents + a[None, :]
        inside = valid[:, None] & (a < agents)[None, :]
        s += tl.load(at, mask=inside, other=0.0).to(tl.float32) * LOG2E
    s = tl.where((a < agents)[None, :], s, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit(do_not_specialize=["keys", "heads", "agents", "each"])
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
    each,
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
    """What agents gather from `each` keys from program_id(1) * each on, of head program_id(0) of sample program_id(2).

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
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, keys)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        valid = n < last
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


@triton.jit(do_not_specialize=["states", "splits"])
def merge(
    partial_ptr,
    terms_ptr,
    gathered_ptr,
    lse_ptr,
    states,
    splits,
    AGENTS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
):
    """V_A and the log-sum-exp of sample and head program_id(0)."""
    a = tl.arange(0, AGENTS)
    e = tl.arange(0, VALUE_WIDTH)
    top = tl.full([AGENTS], -1e30, tl.float32)
    total = tl.zeros([AGENTS], tl.float32)
    gathered = tl.zeros([AGENTS, VALUE_WIDTH], tl.float32)
    for split in range(0, splits):
        slot = (split * states + tl.program_id(0)).to(tl.int64) * AGENTS
        part_top = tl.load(terms_ptr + 2 * slot + a)
        new_top = tl.maximum(top, part_top)
        shrink = tl.exp2(top - new_top)
        grow = tl.exp2(part_top - new_top)
        total = total * shrink + grow * tl.load(terms_ptr + 2 * slot + AGENTS + a)
        part = tl.load(partial_ptr + slot * VALUE_WIDTH + a[:, None] * VALUE_WIDTH + e[None, :])
        gathered = gathered * shrink[:, None] + part * grow[:, None]
        top = new_top
    slot = tl.program_id(0).to(tl.int64) * AGENTS
    tl.store(gathered_ptr + slot * VALUE_WIDTH + a[:, None] * VALUE_WIDTH + e[None, :], gathered / total[:, None])
    tl.store(lse_ptr + slot + a, top + tl.log2(total))


@triton.jit
def load_gathered(gathered_ptr, state, AGENTS: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    a = tl.arange(0, AGENTS)
    e = tl.arange(0, VALUE_WIDTH)
    start = gathered_ptr + state.to(tl.int64) * (AGENTS * VALUE_WIDTH)
    return tl.load(start + a[:, None] * VALUE_WIDTH + e[None, :])


@triton.jit(do_not_specialize=["queries", "heads", "agents"])
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
    """Output of block program_id(0) of head program_id(1) of sample program_id(2)."""
    head = tl.program_id(1)
    sample = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = n < queries
    agent = load_agents(agents_ptr, agents_strides, sample, head, agents, AGENTS, D, WIDTH)
    gathered = load_gathered(gathered_ptr, sample * heads + head, AGENTS, VALUE_WIDTH)
    q = load_tokens(start_of(q_ptr, q_strides, sample, head), row_offsets(n, q_strides, WIDE), valid, D, WIDTH)
    p = read_weights(q, agent, bias_ptr, head, n, valid, queries, agents, scale, AGENTS, HAS_BIAS, PRODUCT)
    out = product(p, gathered, PRODUCT)
    out_start = start_of(out_ptr, out_strides, sample, head)
    store_tokens(out_start, row_offsets(n, out_strides, WIDE), out, valid, E, VALUE_WIDTH)
