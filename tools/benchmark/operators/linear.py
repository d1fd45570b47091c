"""Linear attention with the focused feature map of FLatten Transformer."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ....kernels.linear import linear_attention
from ..problem import Draw, Formulation, Marks, Problem, only_qkv, smaller
from .neighborhood import dense

POWER, EPS = 3, 1e-6


class Case(NamedTuple):
    batch: int
    height: int
    width: int
    heads: int
    channels: int
    marks: Marks | None = None

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width} heads {self.heads} dim {self.channels} focused"

    def reduced(self) -> Case:
        return Case(*smaller(self.batch, self.height, self.width), min(self.heads, 2), min(self.channels, 8))

    def problem(self, draw: Draw) -> Problem:
        inputs = draw.packed(self.batch, self.height, self.width, self.heads, self.channels)
        inputs["scale"] = draw(self.heads, self.channels)
        others = {
            "torch": Formulation(plain, compiled=True),
            "dense attention": Formulation(dense, only_qkv, equivalent=False),
        }
        return Problem(inputs, ours, others)


def ours(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    return linear_attention(
        q, k, v, "focused", query_parameter=scale, key_parameter=scale, mean=True, power=POWER, eps=EPS
    )


def plain(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    q, k = (focus(x.flatten(1, 2), scale).transpose(1, 2) for x in (q, k))
    values = v.flatten(1, 2).transpose(1, 2)
    tokens = k.shape[2]
    state = (k.mT * tokens**-0.5) @ (values * tokens**-0.5)
    share = 1 / (q @ k.mean(2).unsqueeze(-1) + EPS)
    return ((q @ state) * share).transpose(1, 2).reshape(v.shape)


def focus(x: Tensor, scale: Tensor) -> Tensor:
    """Return the focused features of tokens [B, N, heads, D]; the norms are over all heads."""
    x = (F.relu(x) + 1e-6) / F.softplus(scale)
    raised = x**POWER
    length = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return raised * (length / torch.linalg.vector_norm(raised, dim=(-2, -1), keepdim=True))


CASES = (
    Case(128, 56, 56, 2, 32, Marks(0.085, 0.27)),
    Case(16, 128, 128, 8, 64, Marks(0.40, 1.2)),
)
