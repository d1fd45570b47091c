"""Rank-augmented linear attention: the core of RAVLT."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import autocast
from ..kernels.linear import linear_attention
from ..kernels.precision import widen
from .attention_core import Layout
from .rotary import RotaryCore


class RalaCore(RotaryCore):
    """Linear attention with features elu + 1 whose keys are weighted by how much the mean query attends to them.

    Features are turned by rotary positions; what divides them is not.

    Source: RALA, arXiv 2411.07635; qhfan/RALA.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        queries, keys = self.turns(q, layout)
        q, k = self.split(q), self.split(k)
        return linear_attention(
            q,
            k,
            self.split(v),
            "elu_plus_one",
            key_weight=_shares(q, k),
            query_rotary=queries,
            key_rotary=keys,
        ).flatten(-2)


def _shares(q: Tensor, k: Tensor) -> Tensor:
    """Return the softmax over keys of the mean query's scores, [B, N, heads], in at least float32."""
    with autocast.off(q):
        mean = (F.elu(widen(q)) + 1).mean(1)
        scores = torch.einsum("bhd,bnhd->bnh", mean, F.elu(widen(k)) + 1)
        return (scores * q.shape[-1] ** -0.5).softmax(1)
