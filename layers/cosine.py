"""Cottention: attention by cosine similarity."""

import torch
from torch import Tensor, nn

from ..kernels.linear import linear_attention
from ..kernels.precision import widen
from .attention_core import AttentionCore, Layout


class CosineCore(AttentionCore):
    """Linear attention whose weights are the cosines of queries and keys, over a learnt power of their number.

    With N keys the weights of head h are divided by N ** sigmoid(`exponent`[h]). They have signs and no fixed sum.

    Args:
        grid, key_grid, num_prefix_tokens: without effect; nothing here depends on places.
        exponent: what the learnt parameter starts as.

    Source: arXiv 2409.18747; gmongaras/Cottention_Transformer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        exponent: float = 0.5,
    ):
        super().__init__(dim, num_heads)
        self.exponent = nn.Parameter(torch.full((num_heads,), float(exponent)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (self.split(x) for x in (q, k, v))
        # Weighting keys divides sums before they can leave the range of a half type.
        shares = k.shape[1] ** -widen(self.exponent).sigmoid()
        return linear_attention(q, k, v, "unit", normalizer="none", key_weight=shares.expand(k.shape[:-1])).flatten(-2)
