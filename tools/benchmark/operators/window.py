"""Window attention: LITv2's 2x2 windows and Swin's 7x7, without a bias."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ....kernels.window import window_attention
from ..problem import Draw, Formulation, HeadsCase, Marks, Problem


@dataclass(frozen=True)
class Case(HeadsCase):
    window: int

    def __str__(self) -> str:
        return f"{super().__str__()} window {self.window}"

    def problem(self, draw: Draw) -> Problem:
        inputs = draw.packed(self)
        before = {
            "prepare": lambda tensors: {name: cut(x, self.window) for name, x in tensors.items()},
            "restore": lambda out: join(out, self.height, self.width, self.window),
        }
        others = {
            "torch": Formulation(partial(on_maps, attend=softmax, window=self.window), compiled=True),
            "torch SDPA": Formulation(partial(on_maps, attend=sdpa, window=self.window)),
            "torch, on windows cut before": Formulation(softmax, **before),
            "torch SDPA, on windows cut before": Formulation(sdpa, **before),
        }
        return Problem(inputs, partial(window_attention, window=self.window), others)


def cut(x: Tensor, window: int) -> Tensor:
    """Copy a map [B, H, W, heads, D] as windows [B * windows, heads, tokens, D]."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2).contiguous()


def join(x: Tensor, height: int, width: int, window: int) -> Tensor:
    """Copy windows [B * windows, heads, tokens, D] back to a map [B, H, W, heads, D]."""
    x = x.unflatten(2, (window, window)).unflatten(0, (-1, height // window, width // window))
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2).contiguous()


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def on_maps(q: Tensor, k: Tensor, v: Tensor, attend, window: int) -> Tensor:
    out = attend(*(cut(x, window) for x in (q, k, v)))
    return join(out, q.shape[1], q.shape[2], window)


CASES = (
    Case(128, 56, 56, 1, 32, 2, marks=Marks(0.05, 0.16)),
    Case(128, 56, 56, 3, 32, 7, marks=Marks(0.15, 0.50)),
)
