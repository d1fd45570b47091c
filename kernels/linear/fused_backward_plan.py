"""From a kind of call to bound kernels of its gradients, and their launches."""

from collections.abc import Sequence

import triton
from torch import Tensor, empty, float32

from ..fused_total import Total
from ..launch import BoundKernel, token_strides
from .fused_backward import balance, differentiate_tokens
from .fused_backward_keys import differentiate_focused_keys, differentiate_keys
from .fused_focused_keys import differentiate_packed_keys
from .fused_focused_queries import differentiate_focused_queries
from .fused_plan import PACKED, REGISTERS, Call, Settle, packed_kernel, turns

BALANCED = (16, 512)
"""Tokens and channels of the tiles of `balance`, or fewer channels and up to BALANCE_BLOCK tokens."""
BALANCE_BLOCK = 64
BALANCE_RESIDENT, BALANCE_STAGES = 1056, 2
"""Programs of `balance` that run at once, and blocks that it loads ahead."""
CHUNK = 64
"""Of gradients of tokens and of focused keys, a program takes so many channels of a head or of neighbouring heads."""
TOKEN_WARPS, TOKEN_RESIDENT = 8, 264
"""Warps of a program of `differentiate_tokens`, and how many programs with REGISTERS run at once."""
STAGES = 3, 3
"""Blocks that it loads ahead, for queries and for keys."""
KEY_WARPS, KEY_REGISTERS, KEY_RESIDENT, KEY_STAGES = 8, 128, 264, 3
"""The same of `differentiate_focused_keys`, and registers of its threads."""
HEADS = 8
"""At most, of the kernel that takes focused queries of all heads together."""
PACKED_STATES = 128 << 10
"""Bytes of two copies of the state's gradient, at most, beside tiles in shared memory, where keys are packed."""
WHOLE = {"unit", "softmax_channels"}
"""Maps that look at all channels of a head."""


def tile(call: Call) -> tuple[int, int]:
    """Return the heads and the tokens that tiles of the gradients of tokens and of focused keys take together."""
    widest = max(call.sizes["WIDTH"], call.sizes["VALUE_WIDTH"])
    group = max(1, min(triton.next_power_of_2(call.heads), CHUNK // widest))
    return group, 32 if call.sizes["PRODUCT"] == "ieee" or group * widest > CHUNK else 64


class Balance:
    """Gradients of what queries are divided by, and their features' part along themselves."""

    def __init__(self, call: Call, out: Tensor, dout: Tensor):
        block, channels = BALANCED
        width = call.sizes["VALUE_WIDTH"]
        groups = call.in_rows(channels, width)
        block = min(block * channels // (groups["GROUP"] * width), BALANCE_BLOCK)
        splits, each = turns(call.queries, block, call.batch, BALANCE_RESIDENT)
        focused = call.focused(of_keys=False)
        self.sums, self.along = call.sums, call.sums[:2] if focused else (0,)
        self.kernel = BoundKernel(
            balance,
            (splits, call.batch, 1),
            (token_strides(out), token_strides(dout), call.queries, call.heads, each, call.form.eps),
            {
                "BLOCK": block,
                "EVEN": call.queries % block == 0,
                **groups,
                **{name: call.sizes[name] for name in ("E", "WIDTH", "VALUE_WIDTH", "SHIFT", "WIDE")},
                "NORMALIZER": call.form.normalizer,
                "FOCUSED": focused,
                "STAGES": BALANCE_STAGES,
            },
            num_warps=4,
        )

    def __call__(self, out: Tensor, dout: Tensor, sums: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        dsums, along = (empty(shape, dtype=float32, device=out.device) for shape in (self.sums, self.along))
        self.kernel(out, dout, sums, state, dsums, along)
        return dsums, along


class Tokens:
    """Gradients of queries, with the state's, or of focused keys."""

    def __init__(self, call: Call, of_keys: bool, arguments: Sequence, parts: int):
        described = call.map(of_keys)
        width = call.sizes["WIDTH"]
        chunk = width if described["MAP"] in WHOLE else min(CHUNK, width)
        group, block = tile(call)
        self.programs = -(-call.heads // group) * (width // chunk)
        tokens = call.keys if of_keys else call.queries
        self.splits, each = turns(tokens, block, call.batch * self.programs, TOKEN_RESIDENT)
        sizes = ("SHIFT", "D", "WIDTH", "E", "VALUE_WIDTH", "WIDE", "PRODUCT")
        self.kernel = BoundKernel(
            differentiate_tokens,
            (self.programs, self.splits, call.batch),
            (*arguments, tokens, call.heads, each, call.form.eps),
            {
                "BLOCK": block,
                "EVEN": tokens % block == 0,
                "QUERIES": not of_keys,
                "GROUP": group,
                "CHUNK": chunk,
                "STAGES": STAGES[of_keys],
                "PARTS": parts,
                "NORMALIZER": call.form.normalizer,
                "HAS_SHARE": call.weighted or not of_keys,
                **{name: described[name] for name in ("MAP", "POWER", "HAS_PARAMETER", "ROTARY")},
                **{name: call.sizes[name] for name in sizes},
            },
            num_warps=TOKEN_WARPS,
            maxnreg=REGISTERS if call.sizes["PRODUCT"] != "ieee" else None,
        )
        self.total = Total(self.splits * call.batch, call.heads * call.dim) if call.parameters[of_keys] else None

    def __call__(
        self,
        x: Tensor,
        parameter: Tensor | None,
        given: Sequence[Tensor | None],
        dx: Tensor,
        partial: Tensor | None = None,
    ) -> Tensor | None:
        """Fill dx, and with queries the state's gradient in parts; return the parameter's."""
        dparameter = self.total.partial(x) if self.total else None
        self.kernel(x, parameter, *given, dx, partial, dparameter)
        return self.total(dparameter, parameter) if self.total else None


class Queries:
    """Gradients of queries, with the state's, by way of what they are divided by."""

    def __init__(self, call: Call, out: Tensor, dout: Tensor, dq: Tensor):
        self.balance = Balance(call, out, dout)
        self.tokens = Tokens(call, False, (call.q, token_strides(dout), token_strides(dq)), 1)
        self.splits = self.tokens.splits

    def __call__(self, tensors, stats, state, sums, out, dout, dq, partial) -> Tensor | None:
        """Fill dq and the state's gradient in parts; return the parameter's."""
        q, _, _, _, parameter, _, rotary, _ = tensors
        dsums, along = self.balance(out, dout, sums, state)
        return self.tokens(q, parameter, (rotary, stats, sums, dsums, along, state, dout), dq, partial)


class FocusedQueries:
    """The same of focused queries, where a warp can hold a head's state and its gradient."""

    def __init__(self, call: Call, out: Tensor, dout: Tensor, dq: Tensor):
        strides = (call.q, *(token_strides(x) for x in (out, dout, dq)))
        normalizer = call.form.normalizer
        self.kernel, self.splits = packed_kernel(
            call, differentiate_focused_queries, "queries", False, strides, NORMALIZER=normalizer
        )
        self.total = Total(self.splits * call.batch, call.heads * call.dim) if call.parameters[False] else None

    @staticmethod
    def serves(call: Call) -> bool:
        widest = max(call.sizes["WIDTH"], call.sizes["VALUE_WIDTH"])
        return call.packed(of_keys=False) and widest <= max(PACKED["queries"]) and call.all_heads <= HEADS

    def __call__(self, tensors, stats, state, sums, out, dout, dq, partial) -> Tensor | None:
        q, _, _, _, parameter, *_ = tensors
        dparameter = self.total.partial(q) if self.total else None
        self.kernel(q, parameter, stats, state, sums, out, dout, dq, partial, dparameter)
        return self.total(dparameter, parameter) if self.total else None


class Keys:
    """Gradients of keys, values and the keys' weights, but for focused keys."""

    def __init__(self, call: Call, dk: Tensor, dv: Tensor):
        splits, each = call.split(call.keys)
        described = call.map(of_keys=True)
        self.kernel = BoundKernel(
            differentiate_keys,
            (call.groups, splits, call.batch),
            (call.k, call.v, token_strides(dk), token_strides(dv), call.keys, call.heads, each),
            {
                "BLOCK": call.block,
                "EVEN": call.keys % call.block == 0,
                "HAS_WEIGHT": call.weighted,
                **{name: described[name] for name in ("MAP", "ROTARY")},
                **call.sizes,
            },
            num_warps=call.warps,
            # Tiles of wider heads, loaded ahead, would leave fewer programs room.
            num_stages=3 if call.sizes["WIDTH"] <= 32 else 1,
            maxnreg=REGISTERS if call.sizes["PRODUCT"] != "ieee" else None,
        )

    def __call__(self, k, v, weight, parameter, rotary, stats, dstate, dk, dv, dweight) -> tuple[None, None]:
        self.kernel(k, v, weight, rotary, dstate, dk, dv, dweight)
        return None, None


class FocusedKeys:
    """Gradients of focused keys, or what they lack where no tile holds all heads; of values and the keys' weights."""

    def __init__(self, call: Call, dk: Tensor, dv: Tensor):
        group, block = tile(call)
        self.groups = -(-call.heads // group)
        self.together = self.groups == 1
        splits, each = turns(call.keys, block, call.batch * self.groups, KEY_RESIDENT)
        described = call.map(of_keys=True)
        self.along = (0,) if self.together else (call.batch, self.groups, call.keys)
        self.kernel = BoundKernel(
            differentiate_focused_keys,
            (self.groups, splits, call.batch),
            (call.k, call.v, token_strides(dk), token_strides(dv), call.keys, call.heads, each),
            {
                "BLOCK": block,
                "EVEN": call.keys % block == 0,
                "HAS_WEIGHT": call.weighted,
                "TOGETHER": self.together,
                "STAGES": KEY_STAGES,
                **{name: described[name] for name in ("POWER", "HAS_PARAMETER", "ROTARY")},
                **call.sizes,
                "GROUP": group,
            },
            num_warps=KEY_WARPS,
            maxnreg=KEY_REGISTERS if call.sizes["PRODUCT"] != "ieee" else None,
        )
        self.total = (
            Total(splits * call.batch, call.heads * call.dim) if self.together and call.parameters[True] else None
        )

    def __call__(self, k, v, weight, parameter, rotary, stats, dstate, dk, dv, dweight) -> tuple[Tensor, Tensor | None]:
        """Fill dv, the weights' gradient and, with all heads together, dk, and return the parameter's; or what the sum
        over heads of features times their gradients is made of.
        """
        along = empty(self.along, dtype=float32, device=k.device)
        dparameter = self.total.partial(k) if self.total else None
        self.kernel(k, v, weight, parameter, rotary, stats, dstate, dk, dv, dweight, dparameter, along)
        return along, self.total(dparameter, parameter) if self.total else None


class PackedKeys:
    """Gradients of focused keys and of values, all heads of a token in a program."""

    together = True

    def __init__(self, call: Call, dk: Tensor, dv: Tensor):
        arguments = (call.k, call.v, token_strides(dk), token_strides(dv))
        self.kernel, splits = packed_kernel(call, differentiate_packed_keys, "keys", True, arguments)
        self.total = Total(splits * call.batch, call.heads * call.dim) if call.parameters[True] else None

    @staticmethod
    def serves(call: Call) -> bool:
        entry = 2 if call.sizes["PRODUCT"] == "bfloat16" else 4
        copies = 2 * call.all_heads * call.sizes["WIDTH"] * call.sizes["VALUE_WIDTH"] * entry
        return call.packed(of_keys=True) and copies <= PACKED_STATES

    def __call__(self, k, v, weight, parameter, rotary, stats, dstate, dk, dv, dweight) -> tuple[None, Tensor | None]:
        """Fill dk and dv and return the parameter's gradient."""
        dparameter = self.total.partial(k) if self.total else None
        self.kernel(k, v, parameter, stats, dstate, dk, dv, dparameter)
        return None, self.total(dparameter, parameter) if self.total else None


class BackwardPlan:
    """dq, dk, dv and the gradients of the keys' weights and of the maps' parameters, of a kind of call."""

    def __init__(self, call: Call, out: Tensor, dout: Tensor, dq: Tensor, dk: Tensor, dv: Tensor):
        self.queries = (FocusedQueries if FocusedQueries.serves(call) else Queries)(call, out, dout, dq)
        self.settle = Settle(call, self.queries.splits)
        self.keys = None
        kind = PackedKeys if PackedKeys.serves(call) else FocusedKeys if call.focused(of_keys=True) else Keys
        self.values = kind(call, dk, dv)
        if call.focused(of_keys=True) and not self.values.together:
            self.keys = Tokens(call, True, (call.k, call.v, token_strides(dk)), self.values.groups)

    def __call__(
        self,
        tensors: Sequence[Tensor | None],
        dout: Tensor,
        saved: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Fill dq, dk, dv and the gradient of the weights, and return those of the parameters."""
        q, k, v, weight, _, key_parameter, _, key_rotary = tensors
        state, query_stats, key_stats, sums, out = saved
        dq, dk, dv, dweight = gradients
        partial = self.settle.scratch(q)
        dquery = self.queries(tensors, query_stats, state, sums, out, dout, dq, partial)
        dstate = self.settle(partial)
        along, dkey = self.values(k, v, weight, key_parameter, key_rotary, key_stats, dstate, dk, dv, dweight)
        if self.keys:
            given = (key_rotary, key_stats, weight, None, along, dstate, v)
            dkey = self.keys(k, key_parameter, given, dk)
        return [dquery, dkey]
