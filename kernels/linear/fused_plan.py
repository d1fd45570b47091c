"""From a kind of call to bound kernels: how heads and tokens are shared out, and the launches of the output."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor, empty, float32

from ..fused_rows import PRODUCTS
from ..launch import BoundKernel, split, token_strides, wide
from .fused_focused import apply_focused, reduce_focused
from .fused_kernels import apply, measure, reduce, settle
from .reference import Form

MULTIPROCESSORS = 132
PROGRAMS = 1056  # of `measure`, to aim for where tokens can be split: 8 for each of 132 multiprocessors
REGISTERS = 128  # of a thread
RESIDENT = 528  # programs at once with so many registers: 4 on each of 132 multiprocessors
CHANNELS = 64
"""Of a tile: so many of neighbouring heads are taken together."""
MOST_CHANNELS = 128
"""Of a tile that holds all heads, where the focused map needs their norms."""
MEASURED = (16, 512)
"""Tokens and channels of the tiles of which norms alone are taken."""
SHIFTING = {"subtract", "magnitude_aware"}
"""Normalisers with a beta that is not zero."""
PACKED = {
    "reduce": {32: (32, 3, 8), 64: (16, 4, 8)},
    "apply": {32: (32, 3, 16), 64: (32, 3, 8)},
    "queries": {32: (16, 3, 12)},
    "keys": {32: (16, 3, 12), 64: (16, 3, 8)},
}
"""Of kernels of all heads at once, by the most channels of a head: tokens of a block, stages, warps at once on a
multiprocessor."""
PACKED_CHANNELS = 512
"""Of all heads, at most, that those kernels take together."""
PACKED_POWERS = (2, 3)
PACKED_PRODUCTS = ("bfloat16", "tf32")
SHARED = 226 << 10  # bytes of shared memory of a program that they may need


def turns(tokens: int, block: int, others: int, resident: int) -> tuple[int, int]:
    """Return the splits of `tokens` and the tokens of each, whole blocks, for the fewest blocks in turn.

    Args:
        others: programs that there are for each split.
        resident: programs that run at once.
    """
    blocks = -(-tokens // block)

    def in_turn(splits: int) -> int:
        return -(-splits * others // resident) * -(-blocks // splits)

    each = -(-blocks // min(range(1, min(blocks, 1 + 2 * resident // others) + 1), key=in_turn))
    return -(-blocks // each), each * block


def roomy(device: torch.device) -> bool:
    """Return whether a program can have SHARED bytes of shared memory."""
    return device.type != "cuda" or torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= SHARED


class Call:
    """A kind of call: shapes, compile-time flags, and how its work is cut."""

    def __init__(self, tensors: Sequence[Tensor | None], form: Form):
        q, k, v, weight, *parameters, query_rotary, key_rotary = tensors
        self.form, self.parameters = form, [x is not None for x in parameters]
        self.q, self.k, self.v = (token_strides(x) for x in (q, k, v))
        self.batch, self.queries, self.heads, self.dim = q.shape
        self.keys = k.shape[1]
        self.weighted, self.rotaries = weight is not None, (query_rotary is not None, key_rotary is not None)
        product = PRODUCTS[q.dtype]
        widths = [max(16, triton.next_power_of_2(int(x.shape[-1]))) for x in (q, v)]
        self.pairs = widths[0] * (widths[1] + 1)
        self.state = (self.batch, self.heads, self.pairs + widths[1])
        self.sums = (self.batch, self.queries, self.heads)
        all_heads = triton.next_power_of_2(int(self.heads))
        focused = "focused" in (form.query_map, form.key_map)
        # Float32 products run without tensor cores, on smaller tiles.
        most = CHANNELS if product == "ieee" else MOST_CHANNELS
        self.together = focused and all_heads * max(widths) <= most
        self.all_heads, self.device = all_heads, q.device
        self.packable = (
            product in PACKED_PRODUCTS
            and all_heads * max(widths) <= PACKED_CHANNELS
            and max(widths) <= max(PACKED["reduce"])
            and form.power in PACKED_POWERS
            and form.normalizer not in SHIFTING
        )
        self.group = all_heads if self.together else max(1, min(all_heads, CHANNELS // max(widths)))
        self.groups = -(-self.heads // self.group)
        self.sizes = {
            "GROUP": self.group,
            "D": self.dim,
            "WIDTH": widths[0],
            "E": v.shape[-1],
            "VALUE_WIDTH": widths[1],
            "WIDE": wide(q, k, v),
            "PRODUCT": product,
            "SHIFT": form.normalizer in SHIFTING,
        }
        channels = self.group * max(widths)
        self.block = 32 if product == "ieee" or channels > CHANNELS else 64
        self.warps = 4 if channels <= CHANNELS else 8

    def map(self, of_keys: bool) -> dict:
        """Return the compile-time description of the map of queries or of keys."""
        return {
            "MAP": self.form.key_map if of_keys else self.form.query_map,
            "POWER": self.form.power,
            "STATS": self.measured(of_keys),
            "HAS_PARAMETER": self.parameters[of_keys],
            "ROTARY": self.rotaries[of_keys],
        }

    def focused(self, of_keys: bool) -> bool:
        """Return whether tokens have norms over all heads."""
        return (self.form.key_map if of_keys else self.form.query_map) == "focused"

    def packed(self, of_keys: bool) -> bool:
        """Return whether a kernel of fused_focused.py serves."""
        weighted = of_keys and self.weighted
        served = self.packable and self.focused(of_keys) and not self.rotaries[of_keys] and not weighted
        return served and roomy(self.device)

    def measured(self, of_keys: bool) -> bool:
        """Return whether a kernel of its own takes those norms, as a tile holds too few heads."""
        return self.focused(of_keys) and not self.together and not self.packed(of_keys)

    def stats(self, of_keys: bool) -> tuple[int, ...]:
        """Return the shape of the norms."""
        return (self.batch, self.keys if of_keys else self.queries, 2) if self.focused(of_keys) else (0,)

    def kernel(self, kernel, of_keys: bool, arguments: Sequence, **constants) -> BoundKernel:
        """Return a kernel whose programs each take a run of tokens of a group of heads."""
        tokens = self.keys if of_keys else self.queries
        splits, each = self.split(tokens)
        eps = () if of_keys else (self.form.eps,)
        return BoundKernel(
            kernel,
            (self.groups, splits, self.batch),
            (*arguments, tokens, self.heads, each, *eps),
            {
                "BLOCK": self.block,
                "EVEN": tokens % self.block == 0,
                **self.map(of_keys),
                **self.sizes,
                **constants,
            },
            num_warps=self.warps,
            # Tiles of wider heads, loaded ahead, would leave fewer programs room.
            num_stages=3 if self.sizes["WIDTH"] <= 32 else 1,
            maxnreg=REGISTERS if self.sizes["PRODUCT"] != "ieee" else None,
        )

    def in_rows(self, channels: int, width: int) -> dict[str, int]:
        """Return how many heads of that width tiles of so many channels take together, and how many tiles all heads."""
        group = max(1, min(triton.next_power_of_2(self.heads), channels // width))
        return {"GROUP": group, "GROUPS": -(-self.heads // group)}

    def split(self, tokens: int) -> tuple[int, int]:
        """Return how many splits of a sample's tokens there are, and the tokens of each."""
        return turns(tokens, self.block, self.batch * self.groups, RESIDENT * 4 // self.warps)


def packed_kernel(
    call: Call, kernel, name: str, of_keys: bool, arguments: Sequence, **constants
) -> tuple[BoundKernel, int]:
    """Return a kernel of the kind of fused_focused.py, a warp of which takes a head, and in how many splits it takes
    tokens.
    """
    tokens = call.keys if of_keys else call.queries
    width = max(call.sizes["WIDTH"], call.sizes["VALUE_WIDTH"])
    block, stages, warps = next(sizes for most, sizes in PACKED[name].items() if width <= most)
    if call.sizes["PRODUCT"] != "bfloat16":
        block, stages = 16, 2  # of tiles twice as large
    registers = 65536 // (32 * max(warps, call.all_heads)) // 8 * 8
    splits, each = turns(tokens, block, call.batch, MULTIPROCESSORS * max(1, warps // call.all_heads))
    eps = () if of_keys else (call.form.eps,)
    described = call.map(of_keys)
    if "STAGES" in kernel.arg_names:
        constants["STAGES"] = stages
    bound = BoundKernel(
        kernel,
        (splits, call.batch, 1),
        (*arguments, tokens, call.heads, each, *eps),
        {
            "BLOCK": block,
            "EVEN": tokens % block == 0,
            "GROUP": call.all_heads,
            **{name: call.sizes[name] for name in ("D", "WIDTH", "E", "VALUE_WIDTH", "WIDE", "PRODUCT")},
            **{name: described[name] for name in ("HAS_PARAMETER", "POWER")},
            **constants,
        },
        num_warps=call.all_heads,
        num_stages=stages,
        maxnreg=registers if registers < 256 else None,
    )
    return bound, splits


class Measure:
    """Norms of all tokens under the focused map, or memory for them where a tile holds all heads."""

    def __init__(self, call: Call, of_keys: bool):
        self.shape, self.needed = call.stats(of_keys), call.measured(of_keys)
        tokens = call.keys if of_keys else call.queries
        block, channels = MEASURED
        groups = call.in_rows(channels, call.sizes["WIDTH"])
        described = call.map(of_keys)
        splits, each = split(tokens, block, call.batch, PROGRAMS)
        self.kernel = BoundKernel(
            measure,
            (splits, call.batch, 1),
            (call.k if of_keys else call.q, tokens, call.heads, each),
            {
                "STAGES": 3,
                "BLOCK": block,
                "EVEN": tokens % block == 0,
                **groups,
                **{name: call.sizes[name] for name in ("D", "WIDTH", "WIDE")},
                **{name: described[name] for name in ("HAS_PARAMETER", "POWER")},
            },
            num_warps=4,
        )

    def __call__(self, x: Tensor, parameter: Tensor | None) -> Tensor:
        stats = empty(self.shape, dtype=float32, device=x.device)
        if self.needed:
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
            (-(-entries // 256), call.batch * call.heads, 1),
            (call.batch * call.heads, splits, factor, 1 / call.keys),
            {
                "PAIRS": call.pairs,
                "ENTRIES": entries,
                "SPLITS": min(16, triton.next_power_of_2(splits)),
                "BLOCK": 256,
            },
            num_warps=4,
        )

    def scratch(self, like: Tensor) -> Tensor:
        return empty(self.partial, dtype=float32, device=like.device)

    def __call__(self, partial: Tensor) -> Tensor:
        state = empty(self.state, dtype=float32, device=partial.device)
        self.kernel(partial, state)
        return state


class Reduce:
    """Sums over splits of keys and values."""

    def __init__(self, call: Call):
        self.packed = call.packed(of_keys=True)
        if self.packed:
            self.kernel, self.splits = packed_kernel(call, reduce_focused, "reduce", True, (call.k, call.v))
        else:
            self.kernel = call.kernel(reduce, True, (call.k, call.v), HAS_WEIGHT=call.weighted)
            self.splits = call.split(call.keys)[0]

    def __call__(
        self,
        tensors: Sequence[Tensor | None],
        stats: Tensor,
        partial: Tensor,
    ) -> None:
        _, k, v, weight, _, parameter, _, rotary = tensors
        if self.packed:
            self.kernel(k, v, parameter, stats, partial)
        else:
            self.kernel(k, v, weight, parameter, rotary, stats, partial)


class Apply:
    """Output of queries."""

    def __init__(self, call: Call, out: Tensor):
        self.packed, self.sums = call.packed(of_keys=False), call.sums
        strides, normalizer = (call.q, token_strides(out)), call.form.normalizer
        if self.packed:
            self.kernel, _ = packed_kernel(call, apply_focused, "apply", False, strides, NORMALIZER=normalizer)
        else:
            self.kernel = call.kernel(apply, False, strides, NORMALIZER=normalizer)

    def __call__(self, tensors: Sequence[Tensor | None], stats: Tensor, state: Tensor, out: Tensor) -> Tensor:
        """Fill out and return what queries are divided by."""
        q, _, _, _, parameter, _, rotary, _ = tensors
        sums = empty(self.sums, dtype=float32, device=q.device)
        if self.packed:
            self.kernel(q, parameter, stats, state, sums, out)
        else:
            self.kernel(q, parameter, rotary, stats, state, sums, out)
        return sums


class ForwardPlan:
    """out of a kind of call, and what its gradient needs of it."""

    def __init__(self, call: Call, out: Tensor):
        self.measures = [Measure(call, of_keys) for of_keys in (False, True)]
        self.reduce, self.apply = Reduce(call), Apply(call, out)
        self.settle = Settle(call, self.reduce.splits)

    def __call__(self, tensors: Sequence[Tensor | None], out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fill out and return the state, the norms of queries and of keys, and what queries are divided by."""
        q, k, _, _, query_parameter, key_parameter, _, _ = tensors
        query_stats, key_stats = (
            measure(x, parameter)
            for measure, x, parameter in zip(self.measures, (q, k), (query_parameter, key_parameter), strict=True)
        )
        partial = self.settle.scratch(k)
        self.reduce(tensors, key_stats, partial)
        state = self.settle(partial)
        return state, query_stats, key_stats, self.apply(tensors, query_stats, state, out)
