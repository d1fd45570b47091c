"""Global attention with a relative position bias."""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from .mixers import register_mixer
from .position import pairwise_bias, resize_bias_table


@register_mixer("global")
class GlobalAttention(nn.Module):
    """Multi-head attention among all tokens of a channels-last map, [B, H, W, C] -> [B, H, W, C].

    The bias table is made for maps of size `grid` and is resampled bicubically for any other.

    Args:
        dim: channels C, a multiple of `num_heads`.
        grid: map size (H, W) the bias `rpb` of shape [heads, 2H-1, 2W-1] is made for.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`.

    Source: ViT with relative position bias of arXiv 2209.15001, isotropic experiments.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        height, width = to_2tuple(grid)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * height - 1, 2 * width - 1))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        trunc_normal_(self.rpb, std=0.02)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample the bias table for maps of size `grid` (H, W)."""
        height, width = grid
        with torch.no_grad():
            self.rpb = nn.Parameter(resize_bias_table(self.rpb, (2 * height - 1, 2 * width - 1)).clone())

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = pairwise_bias(resize_bias_table(self.rpb, (2 * height - 1, 2 * width - 1)), height, width)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x.transpose(1, 2).flatten(-2).unflatten(1, (height, width))
        return self.proj_drop(self.proj(x))
