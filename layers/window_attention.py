"""Window attention as a layer: Swin's softmax attention inside windows, which every other block shifts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from ..kernels.window import window_attention
from .mixers import register_mixer
from .position import pairwise_bias, resize_bias_table


@register_mixer("window")
class WindowAttention(nn.Module):
    """Multi-head attention inside windows of a channels-last map, [B, H, W, C] -> [B, H, W, C].

    A map that is no multiple of the window is zero-padded at the bottom and right before the qkv projection, so that
    padding tokens carry the qkv bias and act as keys. Shifted windows start half a window later and wrap around; tokens
    that only the wrapping brings together do not see each other.

    Args:
        dim: channels C, a multiple of `num_heads`.
        window: extent of the windows, one or one for each axis.
        shift: whether the windows are shifted.
        rel_pos_bias: learn a bias `rpb` [heads, 2 * window - 1, ...], read at key - query.
        fit: an axis no longer than the window is one window of its own length, not shifted, as classifiers have it.
            Without, it is padded and shifted as any other, as detection and segmentation backbones do.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`, or the window has no extent.

    Source: Swin Transformer, arXiv 2103.14030.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int | Sequence[int] = 7,
        shift: bool = False,
        rel_pos_bias: bool = True,
        fit: bool = True,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        self.window = to_2tuple(window)
        if min(self.window) < 1:
            raise ValueError(f"window={window} must be at least 1")
        self.num_heads = num_heads
        self.shift = shift
        self.fit = fit
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.zeros(num_heads, *(2 * w - 1 for w in self.window))) if rel_pos_bias else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if self.rpb is not None:
            trunc_normal_(self.rpb, std=0.02)

    def resized(self, name: str, table: Tensor) -> Tensor:
        """Return a checkpoint's bias table in the shape of ours, resampled bicubically from another window.

        Args:
            table: [heads, 2a-1, 2b-1], or the released [(2a-1)^2, heads], which is read at query - key.
        """
        if name != "rpb":
            return table
        if table.dim() == 2:
            side = round(table.shape[0] ** 0.5)
            table = table.mT.unflatten(1, (side, side)).flip(1, 2)
        return resize_bias_table(table, tuple(self.rpb.shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        alone = [self.fit and length <= extent for length, extent in zip((height, width), self.window, strict=True)]
        window = [
            length if single else extent
            for length, extent, single in zip((height, width), self.window, alone, strict=True)
        ]
        shift = [0 if single or not self.shift else extent // 2 for extent, single in zip(window, alone, strict=True)]
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        shape = x.shape[1:3]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        bias = None if self.rpb is None else pairwise_bias(self.rpb, *window)
        mask = _seen(shape, window, shift, x.device) if any(shift) else None
        x = window_attention(q, k, v, window, bias=bias, mask=mask).flatten(-2)
        if any(shift):
            x = x.roll(shift, (1, 2))
        return self.proj_drop(self.proj(x[:, :height, :width]))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window={self.window}, shift={self.shift}"


def _seen(shape: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """Return which tokens of a window of the rolled map are neighbours in the map, [windows, N, N]."""
    rows, columns = (
        torch.arange(length, device=device).ge(length - step) for length, step in zip(shape, shift, strict=True)
    )
    wrapped = 2 * rows[:, None] + columns
    windows = (
        wrapped.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2).flatten(0, 1).flatten(1)
    )
    return windows[:, :, None] == windows[:, None]
