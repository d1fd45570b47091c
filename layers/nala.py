"""Norm-aware linear attention: the core of NaLaFormer."""

from torch import Tensor

from ..kernels.linear import linear_attention
from .attention_core import Layout
from .rotary import RotaryCore


class NalaCore(RotaryCore):
    """Linear attention that keeps signs apart and sharpens the direction of queries by their norm.

    The features of positive and of negative parts are turned by rotary positions alike; what divides them is not.

    Source: NaLaFormer, arXiv 2506.21137; ZacharyMeng/NaLaFormer, which differs from the paper in having no
    trigonometric map.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        queries, keys = (table.repeat(1, 1, 2) for table in self.turns(q, layout))
        return linear_attention(
            self.split(q),
            self.split(k),
            self.split(v),
            "norm_aware_query",
            "norm_aware_key",
            query_rotary=queries,
            key_rotary=keys,
            mean=True,
        ).flatten(-2)
