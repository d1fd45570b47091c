"""Linear attention with a floor under its sum of weights: the core of L2ViT."""

import torch
from torch import Tensor, nn

from ..kernels.linear import linear_attention
from .attention_core import AttentionCore, Layout


class L2Core(AttentionCore):
    """Linear attention of rectified queries and keys, whose sum of weights counts for no less than `floor`.

    What is attended is multiplied by a learnt temperature of each head.

    Args:
        grid, key_grid, num_prefix_tokens: without effect; nothing here depends on places.
        floor: smallest number that weights are divided by.

    Source: arXiv 2501.16182; ChuanyangZheng/L2ViT.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        floor: float = 100.0,
    ):
        super().__init__(dim, num_heads)
        if floor <= 0:
            raise ValueError(f"floor={floor} must be more than 0")
        self.floor = floor
        self.temperature = nn.Parameter(torch.full((num_heads, 1), (dim // num_heads) ** -0.5))

    def resized(self, name: str, table: Tensor) -> Tensor:
        return table.reshape(self.temperature.shape) if name == "temperature" else table

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (self.split(x) for x in (q, k, v))
        out = linear_attention(q, k, v, "relu", normalizer="divide_clamped", eps=self.floor)
        return (out * self.temperature.to(out.dtype)).flatten(-2)
