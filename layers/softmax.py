"""Softmax attention among all tokens: the core that the linear ones stand in for."""

import torch.nn.functional as F
from torch import Tensor

from .attention_core import AttentionCore, Layout


class SoftmaxCore(AttentionCore):
    """Multi-head softmax attention, scale D ** -0.5; a core without parameters."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
    ):
        super().__init__(dim, num_heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (self.split(x).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
