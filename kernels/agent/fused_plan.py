"""From a kind of call to bound kernels: blocks of tokens, how they are shared out, and the launches."""

import triton
from torch import Tensor, bfloat16, empty, float32

from ..fused_rows import LOG2E, PRODUCTS
from ..launch import BoundKernel, split, token_strides, wide
from .fused_backward import differentiate_keys, differentiate_queries
from .fused_kernels import gather, merge, read

# Programs to aim for where tokens can be split, forward and backward: 16 for each of 132 multiprocessors with at most
# 16 agents; with more, whose sums are large and are written by each program, as many as run at once.
FEW = (2112, 2112)
MANY = (528, 396)
MERGED = 8  # columns of V_A that a program merges


class Call:
    """A kind of call: shapes, compile-time flags, and how its work is cut."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        agents: Tensor,
        agent_bias: Tensor | None,
        query_bias: Tensor | None,
        scale: float,
    ):
        self.q, self.k, self.v, self.means = (token_strides(x) for x in (q, k, v, agents))
        self.batch, self.queries, self.heads, width = q.shape
        self.keys, self.agents = k.shape[1], agents.shape[1]
        self.scale, self.scale_log2 = scale, scale * LOG2E.value
        self.gather_bias, self.read_bias = agent_bias is not None, query_bias is not None
        rows = max(16, triton.next_power_of_2(self.agents))
        widths = [max(16, triton.next_power_of_2(x.shape[-1])) for x in (q, v)]
        # Float32 products run without tensor cores, on smaller blocks.
        self.block = 32 if q.dtype == float32 or max(rows, *widths) > 64 else 64
        self.few = rows == 16
        self.programs, self.backward_programs = FEW if self.few else MANY
        self.gathered = (self.batch, self.heads, rows, widths[1])
        self.dagents = (self.batch, self.heads, rows, widths[0])
        self.sizes = {
            "AGENTS": rows,
            "BLOCK": self.block,
            "D": width,
            "WIDTH": widths[0],
            "E": v.shape[-1],
            "VALUE_WIDTH": widths[1],
            "WIDE": wide(q, k, v),
            "PRODUCT": PRODUCTS[q.dtype],
        }
        self.dlogits_dtype = bfloat16 if q.dtype == bfloat16 else float32
        self.options = {"num_warps": 4, "num_stages": 3 if self.few else 2}
        # So that three programs share a multiprocessor's registers, for a few spills.
        capped = {} if self.few or self.block < 64 or q.dtype != bfloat16 else {"maxnreg": 168}
        self.backward_options = {**self.options, **capped}

    def split(self, tokens: int, programs: int) -> tuple[int, int]:
        """Return how many splits of a sample's tokens there are, and the blocks of each."""
        splits, each = split(tokens, self.block, self.batch * self.heads, programs)
        return splits, each // self.block


class Gather:
    """V_A and the log-sum-exp of a kind of call."""

    def __init__(self, call: Call):
        self.call = call
        self.splits, blocks = call.split(call.keys, call.programs)
        self.kernel = BoundKernel(
            gather,
            (call.heads, self.splits, call.batch),
            (call.k, call.v, call.means, call.keys, call.heads, call.agents, blocks, call.scale_log2),
            {"HAS_BIAS": call.gather_bias, **call.sizes},
            **call.options,
        )
        self.merge = BoundKernel(
            merge,
            (call.batch * call.heads, call.sizes["VALUE_WIDTH"] // MERGED, 1),
            (call.batch * call.heads, self.splits, call.agents),
            {
                **{name: call.sizes[name] for name in ("AGENTS", "E", "VALUE_WIDTH")},
                "COLUMNS": MERGED,
                "SPLITS": min(1024 // call.sizes["AGENTS"], triton.next_power_of_2(self.splits)),
            },
            num_warps=4,
        )

    def __call__(
        self, k: Tensor, v: Tensor, agents: Tensor, bias: Tensor | None, gathered: Tensor, lse: Tensor
    ) -> None:
        shape = self.call.gathered
        partial = empty((self.splits, *shape), dtype=float32, device=k.device)
        terms = empty((self.splits, *shape[:2], 2, shape[2]), dtype=float32, device=k.device)
        self.kernel(k, v, agents, bias, partial, terms)
        self.merge(partial, terms, gathered, lse)


class ForwardPlan:
    """out, V_A and the log-sum-exp of a kind of call."""

    def __init__(self, call: Call, out: Tensor):
        self.gather = Gather(call)
        splits, blocks = call.split(call.queries, call.programs)
        self.kernel = BoundKernel(
            read,
            (call.heads, splits, call.batch),
            (call.q, call.means, token_strides(out), call.queries, call.heads, call.agents, blocks, call.scale_log2),
            {"HAS_BIAS": call.read_bias, **call.sizes},
            **call.options,
        )

    def __call__(self, q, k, v, agents, agent_bias, query_bias, out, gathered, lse) -> None:
        self.gather(k, v, agents, agent_bias, gathered, lse)
        self.kernel(q, agents, query_bias, gathered, out)


class BackwardPlan:
    """All gradients of a kind of call."""

    def __init__(self, call: Call, dout: Tensor, dq: Tensor, dk: Tensor, dv: Tensor):
        self.call = call
        scales = (call.scale, call.scale_log2)
        self.query_splits, blocks = call.split(call.queries, call.backward_programs)
        self.queries_kernel = BoundKernel(
            differentiate_queries,
            (call.heads, self.query_splits, call.batch),
            (
                call.q,
                call.means,
                token_strides(dout),
                token_strides(dq),
                call.queries,
                call.heads,
                call.agents,
                blocks,
                *scales,
            ),
            {"HAS_BIAS": call.read_bias, **call.sizes},
            **call.backward_options,
        )
        self.key_splits, blocks = call.split(call.keys, call.backward_programs)
        key_strides = (call.k, call.v, call.means, token_strides(dk), token_strides(dv))
        self.keys_kernel = BoundKernel(
            differentiate_keys,
            (call.heads, self.key_splits, call.batch),
            (*key_strides, call.keys, call.heads, call.agents, blocks, *scales),
            {"HAS_BIAS": call.gather_bias, **call.sizes},
            **call.backward_options,
        )

    def __call__(
        self, q, k, v, agents, agent_bias, query_bias, gathered, lse, dout, dq, dk, dv
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Fill dq, dk and dv, and return the gradients of agents, as [B, n, heads, D], and of the logits of biases, as
        [B, heads, n, tokens].
        """
        call = self.call

        def scratch(*shape: int, dtype=float32) -> Tensor:
            return empty(shape, dtype=dtype, device=q.device)

        def scratch_logits(tokens: int, biased: bool) -> Tensor | None:
            return scratch(call.batch, call.heads, call.agents, tokens, dtype=call.dlogits_dtype) if biased else None

        dgathered = scratch(self.query_splits, *call.gathered)
        dagents = scratch(self.query_splits + self.key_splits, *call.dagents)
        dread = scratch_logits(call.queries, call.read_bias)
        dgather = scratch_logits(call.keys, call.gather_bias)
        self.queries_kernel(q, agents, query_bias, gathered, dout, dq, dgathered, dagents, dread)
        dgathered = dgathered.sum(0) if self.query_splits > 1 else dgathered
        later = dagents[self.query_splits :]
        self.keys_kernel(k, v, agents, agent_bias, gathered, lse, dgathered, dk, dv, later, dgather)
        total = dagents.sum(0)[:, :, : call.agents, : q.shape[-1]].mul_(call.scale).transpose(1, 2)
        return total, dgather, dread
