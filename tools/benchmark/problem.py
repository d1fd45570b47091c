"""What an operator's table is made of: a case's tensors, our operator, and other ways to compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Marks(NamedTuple):
    """Times to reach on one H200 in bfloat16, in milliseconds."""

    forward: float
    forward_backward: float


def as_is(x):
    """Return x."""
    return x


@dataclass(frozen=True)
class Formulation:
    """A way to compute an operator.

    Args:
        function: called with what `prepare` makes of a problem's inputs, by name.
        prepare: brings the inputs to the layout that suits the function best; not timed.
        restore: brings its output back to the layout of ours; not timed.
        compiled: whether it is also timed under torch.compile.
        equivalent: whether it computes what our operator does, and not something that is put beside it.
    """

    function: Callable[..., Tensor]
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = as_is
    restore: Callable[[Tensor], Tensor] = as_is
    compiled: bool = False
    equivalent: bool = True


@dataclass(frozen=True)
class Problem:
    """The tensors of a case by name, what our operator makes of them, and the other formulations by name."""

    inputs: dict[str, Tensor]
    ours: Callable[..., Tensor]
    others: dict[str, Formulation]


@dataclass(frozen=True)
class Case:
    """A row of an operator's table, on a batch of maps; `str(case)` names it, and `case.problem(draw)` makes it."""

    batch: int
    height: int
    width: int
    marks: Marks | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"

    @property
    def grid(self) -> tuple[int, int, int]:
        """Batch, height and width."""
        return self.batch, self.height, self.width

    def reduced(self, side: int = 14, **limits: int) -> Self:
        """Return the same case at a size for a CPU: maps up to `side`, and other fields up to their limits."""
        limits = {"batch": 2, "height": side, "width": side, **limits}
        return replace(self, marks=None, **{name: min(getattr(self, name), most) for name, most in limits.items()})


@dataclass(frozen=True)
class MapCase(Case):
    """A case of maps [batch, height, width, channels]."""

    channels: int

    def __str__(self) -> str:
        return f"{super().__str__()} channels {self.channels}"

    def reduced(self) -> Self:
        return super().reduced(channels=24)


@dataclass(frozen=True)
class HeadsCase(Case):
    """A case of q, k and v, [batch, height, width, heads, channels]."""

    heads: int
    channels: int

    def __str__(self) -> str:
        return f"{super().__str__()} heads {self.heads} dim {self.channels}"

    def reduced(self, side: int = 14, **limits: int) -> Self:
        return super().reduced(side, heads=2, channels=8, **limits)


@dataclass(frozen=True)
class Draw:
    """Draws normally distributed tensors, the same ones for the same device."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype) * scale

    def weight(self, *shape: int) -> Tensor:
        """Draw a weight [outputs, ...] that keeps the size of what it is applied to."""
        return self(*shape, scale=math.prod(shape[1:]) ** -0.5)

    def packed(self, case: HeadsCase) -> dict[str, Tensor]:
        """Draw q, k and v as views of one projection."""
        return dict(zip("qkv", self(*case.grid, 3, case.heads, case.channels).unbind(-3), strict=True))


def only_qkv(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return q, k and v alone, for formulations that know nothing else."""
    return {name: inputs[name] for name in "qkv"}


def in_nchw(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs with the map x [B, H, W, C] in the memory of an NCHW one."""
    return inputs | {"x": inputs["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)}


def both_layouts(function: Callable[..., Tensor]) -> dict[str, Formulation]:
    """Return a formulation that sees x [B, H, W, C] as an NCHW view, on NCHW and on channels-last memory."""
    return {
        "torch nchw": Formulation(function, in_nchw),
        "torch nhwc": Formulation(function, compiled=True),
    }
