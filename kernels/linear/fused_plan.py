"""From a kind of call to bound kernels: blocks of tokens, how they are shared out, and the launches."""

from collections.abc import Sequence

import triton
from torch import Tensor, empty, float32

from ..fused_rows import PRODUCTS
from ..launch import BoundKernel, split, wide
from .fused_backward import differentiate_keys, differentiate_queries, differentiate_state
from .fused_kernels import apply, measure, reduce, settle
from .reference import Form

PROGRAMS = 1056  # to aim for where tokens can be split: 8 for each of 132 multiprocessors
FEW_HEADS = 3
"""Up to so many heads, a program that sums one head's tokens measures those of all heads by itself."""


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, tokens and heads of [B, N, heads, D]."""
    return x.stride()[:3]


class Call:
    """A kind of call: shapes, compile-time flags, and how its work is cut."""

    def __init__(self, tensors: Sequence[Tensor | None], form: Form):
        q, k, v, weight, *parameters, query_rotary, key_rotary = tensors
        self.form, self.parameters = form, [x is not None for x in parameters]
        self.q, self.k, self.v = (_strides(x) for x in (q, k, v))
        self.batch, self.queries, self.heads, width = q.shape
        self.keys, self.dim = k.shape[1], width
        self.weighted, self.rotaries = weight is not None, (query_rotary is not None, key_rotary is not None)
        widths = [max(16, triton.next_power_of_2(x.shape[-1])) for x in (q, v)]
        self.state = (self.batch, self.heads, widths[0] * widths[1] + sum(widths))
        self.pairs = widths[0] * (widths[1] + 1)
        product = PRODUCTS[q.dtype]
        self.sizes = {
            "D": width,
            "WIDTH": widths[0],
            "E": v.shape[-1],
            "VALUE_WIDTH": widths[1],
            "WIDE": wide(q, k, v),
            "PRODUCT": product,
        }
        # Float32 products run without tensor cores, on smaller blocks.
        self.block = 32 if product == "ieee" or max(widths) > 64 else 64
        self.options = {"num_warps": 4, "num_stages": 2}

    def map(self, of_keys: bool) -> dict:
        """Return the compile-time description of the map of queries or of keys."""
        return {
            "MAP": self.form.key_map if of_keys else self.form.query_map,
            "POWER": self.form.power,
            "HAS_PARAMETER": self.parameters[of_keys],
            "ROTARY": self.rotaries[of_keys],
        }

    def split(self, tokens: int) -> tuple[int, int]:
        """Return how many splits of a sample's tokens there are, and the tokens of each."""
        return split(tokens, self.block, self.batch * self.heads, PROGRAMS)


class Measure:
    """Lengths of all tokens under the focused map, where many heads would each have to take them anew."""

    def __init__(self, call: Call, of_keys: bool):
        tokens = call.keys if of_keys else call.queries
        described = call.map(of_keys)
        self.shape = (call.batch, tokens, 3)
        self.needed = described["MAP"] == "focused" and call.heads > FEW_HEADS
        self.kernel = BoundKernel(
            measure,
            (-(-tokens // call.block), call.batch, 1),
            (call.k if of_keys else call.q, tokens, call.heads),
            {
                "BLOCK": call.block,
                **{name: call.sizes[name] for name in ("D", "WIDTH", "WIDE")},
                **{name: described[name] for name in ("HAS_PARAMETER", "POWER")},
            },
            **call.options,
        )

    def __call__(self, x: Tensor, parameter: Tensor | None) -> Tensor | None:
        if not self.needed:
            return None
        stats = empty(self.shape, dtype=float32, device=x.device)
        self.kernel(x, parameter, stats)
        return stats


class Settle:
    """States from sums over splits."""

    def __init__(self, call: Call, splits: int):
        factor = call.form.scale / call.keys if call.form.mean else call.form.scale
        entries = call.state[-1]
        self.partial, self.state = (splits, *call.state), call.state
        self.kernel = BoundKernel(
            settle,
            (-(-entries // 1024), call.batch * call.heads, 1),
            (call.batch * call.heads, splits, factor, 1 / call.keys),
            {"PAIRS": call.pairs, "ENTRIES": entries, "BLOCK": 1024},
            num_warps=4,
        )

    def scratch(self, like: Tensor) -> Tensor:
        return empty(self.partial, dtype=float32, device=like.device)

    def __call__(self, partial: Tensor) -> Tensor:
        state = empty(self.state, dtype=float32, device=partial.device)
        self.kernel(partial, state)
        return state


class StatePlan:
    """The state of keys and values of a kind of call."""

    def __init__(self, call: Call):
        self.measure = Measure(call, of_keys=True)
        splits, each = call.split(call.keys)
        self.settle = Settle(call, splits)
        self.kernel = BoundKernel(
            reduce,
            (call.heads, splits, call.batch),
            (call.k, call.v, call.keys, call.heads, each),
            {
                "BLOCK": call.block,
                "STATS": self.measure.needed,
                "HAS_WEIGHT": call.weighted,
                **call.map(of_keys=True),
                **call.sizes,
            },
            **call.options,
        )

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        _, k, v, weight, _, parameter, _, rotary = tensors
        partial = self.settle.scratch(k)
        self.kernel(k, v, weight, parameter, rotary, self.measure(k, parameter), partial)
        return self.settle(partial)


class ForwardPlan:
    """out of a kind of call."""

    def __init__(self, call: Call, out: Tensor):
        self.state = StatePlan(call)
        across = call.form.query_map == "focused"
        self.kernel = BoundKernel(
            apply,
            (-(-call.queries // call.block), 1 if across else call.heads, call.batch),
            (call.q, _strides(out), call.queries, call.heads, call.form.eps),
            {"BLOCK": call.block, "NORMALIZER": call.form.normalizer, **call.map(of_keys=False), **call.sizes},
            **call.options,
        )

    def __call__(self, tensors: Sequence[Tensor | None], out: Tensor) -> None:
        self.kernel(tensors[0], tensors[4], tensors[6], self.state(tensors), out)


class BackwardPlan:
    """dq, dk, dv and the gradients of the keys' weights and of the maps' parameters, of a kind of call."""

    def __init__(self, call: Call, dout: Tensor, dq: Tensor, dk: Tensor, dv: Tensor):
        self.state = StatePlan(call)
        self.measure = Measure(call, of_keys=False)
        splits, each = call.split(call.queries)
        self.settle = Settle(call, splits)
        self.across = [name == "focused" for name in (call.form.query_map, call.form.key_map)]
        blocks = [-(-tokens // call.block) for tokens in (call.queries, call.keys)]
        self.dparameters = [
            (call.batch, count, call.heads, call.dim) if across and has else None
            for count, across, has in zip(blocks, self.across, call.parameters, strict=True)
        ]
        mapped = call.map(of_keys=False)
        strides = (call.q, _strides(dout), _strides(dq))
        normalizer = {"NORMALIZER": call.form.normalizer}
        self.sums_kernel = BoundKernel(
            differentiate_state,
            (call.heads, splits, call.batch),
            (*strides, call.queries, call.heads, each, call.form.eps),
            {"BLOCK": call.block, "STATS": self.measure.needed, **normalizer, **mapped, **call.sizes},
            **call.options,
        )
        self.queries_kernel = BoundKernel(
            differentiate_queries,
            (blocks[0], call.batch, 1),
            (*strides, call.queries, call.heads, call.form.eps),
            {
                "BLOCK": call.block,
                **normalizer,
                **{name: value for name, value in mapped.items() if name != "MAP"},
                **call.sizes,
            },
            **call.options,
        )
        self.keys_kernel = BoundKernel(
            differentiate_keys,
            (blocks[1], 1 if self.across[1] else call.heads, call.batch),
            (call.k, call.v, _strides(dk), _strides(dv), call.keys, call.heads),
            {"BLOCK": call.block, "HAS_WEIGHT": call.weighted, **call.map(of_keys=True), **call.sizes},
            **call.options,
        )

    def __call__(
        self, tensors: Sequence[Tensor | None], dout: Tensor, gradients: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Fill dq, dk, dv and the gradient of the weights, and return those of the parameters in float32."""
        q, k, v, weight, query_parameter, key_parameter, query_rotary, key_rotary = tensors
        dq, dk, dv, dweight = gradients
        state = self.state(tensors)
        dquery, dkey = (
            None if shape is None else empty(shape, dtype=float32, device=q.device) for shape in self.dparameters
        )
        partial = self.settle.scratch(q)
        stats = self.measure(q, query_parameter)
        self.sums_kernel(q, query_parameter, query_rotary, stats, state, dout, dq, partial)
        if self.across[0]:
            self.queries_kernel(q, query_parameter, query_rotary, state, dout, dq, dquery)
        dstate = self.settle(partial)
        self.keys_kernel(k, v, weight, key_parameter, key_rotary, dstate, dk, dv, dweight, dkey)
        return [None if x is None else x.sum((0, 1)) for x in (dquery, dkey)]
