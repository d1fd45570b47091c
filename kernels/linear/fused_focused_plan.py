"""Gradients of focused keys and of values by the kernel of fused_focused_keys.py, bound and launched."""

from torch import Tensor

from ..launch import BoundKernel, token_strides
from .fused_focused_keys import differentiate_packed_keys
from .fused_plan import MULTIPROCESSORS, Call, Total, turns

PACKED_KEYS = {32: (16, 3, 12), 64: (16, 3, 8)}
"""By the most channels of a head: tokens of a block, stages, warps at once on a multiprocessor."""
PACKED_STATES = 128 << 10  # bytes of two copies of the state's gradient, at most, beside tiles in shared memory


class PackedKeys:
    """Gradients of keys and values, all heads of a token in a program."""

    together = True

    def __init__(self, call: Call, dk: Tensor, dv: Tensor):
        width = max(call.sizes["WIDTH"], call.sizes["VALUE_WIDTH"])
        block, stages, warps = next(sizes for most, sizes in PACKED_KEYS.items() if width <= most)
        if call.sizes["PRODUCT"] != "bfloat16":
            block, stages = 16, 2  # of tiles twice as large
        registers = 65536 // (32 * max(warps, call.all_heads)) // 8 * 8
        resident = MULTIPROCESSORS * max(1, warps // call.all_heads)
        splits, each = turns(call.keys, block, call.batch, resident)
        described = call.map(of_keys=True)
        self.kernel = BoundKernel(
            differentiate_packed_keys,
            (splits, call.batch, 1),
            (call.k, call.v, token_strides(dk), token_strides(dv), call.keys, call.heads, each),
            {
                "BLOCK": block,
                "EVEN": call.keys % block == 0,
                "GROUP": call.all_heads,
                "STAGES": stages,
                **{name: call.sizes[name] for name in ("D", "WIDTH", "E", "VALUE_WIDTH", "WIDE", "PRODUCT")},
                **{name: described[name] for name in ("HAS_PARAMETER", "POWER")},
            },
            num_warps=call.all_heads,
            maxnreg=registers if registers < 256 else None,
        )
        self.total = Total(call, splits) if call.parameters[True] else None

    @staticmethod
    def serves(call: Call) -> bool:
        entry = 2 if call.sizes["PRODUCT"] == "bfloat16" else 4
        copies = 2 * call.all_heads * call.sizes["WIDTH"] * call.sizes["VALUE_WIDTH"] * entry
        return call.packed(of_keys=True) and copies <= PACKED_STATES

    def __call__(self, k, v, weight, parameter, rotary, stats, dstate, dk, dv, dweight) -> tuple[None, Tensor | None]:
        """Fill dk and dv and return the parameter's gradient."""
        dparameter = self.total.scratch(k) if self.total else None
        self.kernel(k, v, parameter, stats, dstate, dk, dv, dparameter)
        return None, self.total(dparameter, parameter) if self.total else None
