"""Neighborhood attention with the relative position bias and its gradient, beside NATTEN where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ....kernels.neighborhood import neighborhood_attention
from ..problem import Draw, Formulation, HeadsCase, Marks, Problem, only_qkv

DENSE_TOKENS = 1 << 13
"""Tokens up to which dense attention is put beside ours."""


@dataclass(frozen=True)
class Case(HeadsCase):
    window: int
    dilation: int
    biased: bool = True

    def __str__(self) -> str:
        return f"{super().__str__()} window {self.window} dilation {self.dilation}" + " bias" * self.biased

    def reduced(self) -> Case:
        return super().reduced(side=max(14, self.window * self.dilation))

    def problem(self, draw: Draw) -> Problem:
        inputs = draw.packed(self)
        others = {
            name: Formulation(
                partial(function, kernel_size=self.window, dilation=self.dilation),
                named_in_full,
                equivalent=not self.biased,
            )
            for name, function in natten(draw.device.type == "cuda").items()
        }
        if self.height * self.width <= DENSE_TOKENS:
            others["dense attention"] = Formulation(dense, only_qkv, equivalent=False)
        if self.biased:
            extent = 2 * self.window - 1
            # As a parameter is, also where the rest is bfloat16.
            dtype = torch.promote_types(draw.dtype, torch.float32)
            inputs["bias"] = draw(self.heads, extent, extent).to(dtype)
        ours = partial(neighborhood_attention, window=self.window, dilation=self.dilation)
        return Problem(inputs, ours, others)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of all tokens of a map to all, [B, H, W, heads, D]."""
    out = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).reshape(v.shape)


def named_in_full(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return q, k and v by NATTEN's names; it has no bias."""
    return {"query": inputs["q"], "key": inputs["k"], "value": inputs["v"]}


def natten(cuda: bool) -> dict[str, Callable[..., Tensor]]:
    """NATTEN where it is installed: what it chooses itself, or without its compiled library its flex backend.

    That one has no gradients on a CPU.
    """
    try:
        import natten
    except ImportError:
        return {}
    if natten.HAS_LIBNATTEN:
        return {"natten": natten.na2d}
    if not cuda:
        return {}
    natten.allow_flex_compile(True, backprop=True)
    return {"natten flex": partial(natten.na2d, backend="flex-fna", torch_compile=True)}


CASES = (
    Case(128, 56, 56, 2, 32, 7, 1, marks=Marks(0.15, 0.65)),
    Case(128, 28, 28, 4, 32, 7, 1, marks=Marks(0.08, 0.35)),
    Case(128, 14, 14, 8, 32, 7, 1, marks=Marks(0.04, 0.17)),
    Case(128, 7, 7, 16, 32, 7, 1, marks=Marks(0.015, 0.07)),
    Case(128, 56, 56, 2, 32, 7, 8, marks=Marks(0.15, 0.65)),
    Case(2, 200, 304, 2, 32, 7, 1, marks=Marks(0.06, 0.25)),
    Case(8, 64, 64, 12, 64, 7, 1, marks=Marks(0.15, 0.60)),
    Case(1, 128, 128, 16, 64, 13, 1, marks=Marks(0.30, 1.2)),
    Case(1, 256, 256, 8, 128, 16, 1, False, marks=Marks(1.08, 4.0)),
)
