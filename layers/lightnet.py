"""LightNet's attention of images, which is not causal: keys as shares of tokens, a norm, and a gate of low rank."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import autocast
from ..kernels.linear import linear_attention
from ..kernels.precision import widen
from .attention_core import AttentionCore, Layout
from .mixers import register_mixer
from .rotary import coordinates


class LightNetCore(AttentionCore):
    """Linear attention of queries with SiLU and keys with softmax over tokens, nothing to divide by.

    Args:
        grid, key_grid, num_prefix_tokens: taken as every core takes them; positions are made anew for each map.
        positions: multiply features by the cosines and the sines of learnt angles that grow with rows, for the first
            half of a head's channels, and with columns, for the second. Prefix tokens are at place 0.

    Source: LightNet, arXiv 2405.21022; positions as its MD-LRPE in Doraemonzzz/xopes.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        positions: bool = False,
    ):
        super().__init__(dim, num_heads)
        half = (dim // num_heads + 1) // 2
        start = 10000.0 ** -(torch.arange(half) / half)
        self.theta = nn.Parameter(start.repeat(num_heads, 1)) if positions else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (self.split(x) for x in (q, k, v))
        if self.theta is None:
            return linear_attention(q, k, v, "silu", "softmax_tokens", "none").flatten(-2)
        with autocast.off(q):
            theta = self.theta.to(torch.promote_types(q.dtype, torch.float32))
            turns = (self._angles(place, theta) for place in coordinates(theta, layout))
            features = (F.silu(widen(q)), widen(k).softmax(1))
            q, k = (
                torch.cat((x * angles.cos(), x * angles.sin()), -1).to(v.dtype)
                for x, angles in zip(features, turns, strict=True)
            )
        return linear_attention(q, k, v, normalizer="none").flatten(-2)

    def _angles(self, places: Tensor, theta: Tensor) -> Tensor:
        """Return the angles [N, heads, D] at the rows and columns `places` [2, N]."""
        angles = torch.cat([place[:, None, None] * theta for place in places], -1)
        return angles[..., : self.dim // self.num_heads]


@register_mixer("lightnet")
class LightNetAttention(nn.Module):
    """Token mixer of one projection to queries, keys and values, `LightNetCore`, a norm, a gate, and a projection.

    Called with a channels-last map [B, H, W, C] it returns one; called with tokens [B, N, C] and the size `grid` (H, W)
    of their map, the first N - H * W of them prefix tokens, it returns tokens.

    Args:
        gate_dim: channels between the two layers of the gate, those of a head by default.
        affine: whether the norm has weights; its epsilon is then 1e-5, else 1e-6.
        qkv_bias: whether the first projection has a bias.
        options: of `LightNetCore`.

    Source: arXiv 2405.21022.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        gate_dim: int | None = None,
        affine: bool = False,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        positions: bool = False,
    ):
        super().__init__()
        self.core = LightNetCore(dim, num_heads, positions=positions)
        gate_dim = dim // num_heads if gate_dim is None else gate_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.gate = nn.Sequential(nn.Linear(dim, gate_dim), nn.Linear(gate_dim, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-5 if affine else 1e-6, elementwise_affine=affine)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample the core's tables for maps of size `grid` (H, W); it has none."""
        self.core.set_grid(grid)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        tokens, grid = (x.flatten(1, 2), x.shape[1:3]) if grid is None else (x, grid)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        out = self.core(q, k, v, grid, num_prefix_tokens=tokens.shape[1] - grid[0] * grid[1])
        out = self.norm(out) * torch.sigmoid(self.gate(tokens))
        return self.proj_drop(self.proj(out)).view(x.shape)
