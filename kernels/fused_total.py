"""Sums over what programs left, in one order."""

import triton
import triton.language as tl
from torch import Tensor, empty, float32

from .fused_rows import narrowed
from .launch import BoundKernel


@triton.jit(do_not_specialize=["slots", "entries"])
def total(partial_ptr, out_ptr, slots, entries, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of [slots, entries] over slots."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < entries
    rows = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for start in range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        mask = (slot < slots)[:, None] & inside[None, :]
        rows += tl.load(partial_ptr + slot.to(tl.int64)[:, None] * entries + at[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + at, narrowed(tl.sum(rows, 0), out_ptr), mask=inside)


class Total:
    """The gradient of a parameter from the parts of it that programs left, [slots, entries]."""

    def __init__(self, slots: int, entries: int):
        self.shape = (slots, entries)
        columns = 8
        self.kernel = BoundKernel(
            total, (-(-entries // columns), 1, 1), self.shape, {"BLOCK": 512, "COLUMNS": columns}, num_warps=8
        )

    def partial(self, like: Tensor) -> Tensor:
        return empty(self.shape, dtype=float32, device=like.device)

    def __call__(self, partial: Tensor, parameter: Tensor) -> Tensor:
        """Return it, in shape and dtype like the parameter."""
        gradient = empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        self.fill(partial, gradient)
        return gradient

    def fill(self, partial: Tensor, gradient: Tensor) -> None:
        self.kernel(partial, gradient)
