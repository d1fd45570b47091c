"""Magnitude-aware linear attention: the core of MAViT."""

from torch import Tensor

from ..kernels.linear import linear_attention
from .attention_core import Layout
from .rotary import RotaryCore


class MalaCore(RotaryCore):
    """Linear attention with features elu + 1 whose weights are scaled and shifted, so that they sum to one.

    Features are turned by rotary positions; what scales and shifts them is not, so the sum is one up to the turning.

    Source: MALA, arXiv 2507.00698; qhfan/MALA.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        queries, keys = self.turns(q, layout)
        return linear_attention(
            self.split(q),
            self.split(k),
            self.split(v),
            "elu_plus_one",
            normalizer="magnitude_aware",
            query_rotary=queries,
            key_rotary=keys,
            scale=(self.dim // self.num_heads) ** -0.5,
            mean=True,
        ).flatten(-2)
