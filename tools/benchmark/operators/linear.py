"""Linear attention with the focused feature map of FLatten Transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....kernels.linear import linear_attention
from ..problem import Draw, Formulation, HeadsCase, Marks, Problem, only_qkv
from .neighborhood import dense

POWER, EPS = 3, 1e-6


class Case(HeadsCase):
    def __str__(self) -> str:
        return f"{super().__str__()} focused"

    def problem(self, draw: Draw) -> Problem:
        inputs = draw.packed(self)
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
    Case(128, 56, 56, 2, 32, marks=Marks(0.085, 0.27)),
    Case(16, 128, 128, 8, 64, marks=Marks(0.40, 1.2)),
)
