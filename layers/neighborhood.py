"""Neighborhood attention as a layer, with its projections, relative position bias and padding rule."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from ..kernels.neighborhood import neighborhood_attention_packed
from .mixers import register_mixer


@register_mixer("na")
class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood attention over a channels-last map, [B, H, W, C] -> [B, H, W, C].

    An axis shorter than `window * dilation` is zero-padded at its end before the qkv projection, attended to without a
    mask, and cropped before the output projection. Padding tokens so carry the qkv bias, as in the released models.

    Args:
        dim: channels C, a multiple of `num_heads`.
        window, dilation, stride, causal: the neighborhood; one value, or one for each of the two axes. A `dilation` of
            None is the largest that fits each map: 1, or extent // window where that is more.
        rel_pos_bias: learn a bias `rpb` [heads, 2 * window - 1, 2 * window - 1]; needs odd windows and no causal axis.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`, or the bias does not suit the window.

    Source: arXiv 2204.07143 and 2209.15001; padding as in natten 0.15.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int | Sequence[int] = 7,
        dilation: int | Sequence[int] | None = 1,
        stride: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.window = to_2tuple(window)
        self.dilation = None if dilation is None else to_2tuple(dilation)
        self.stride = to_2tuple(stride)
        self.causal = to_2tuple(causal)
        if min(self.window) < 1 or min(self.dilation or self.window) < 1:
            raise ValueError(f"window={window} and dilation={dilation} must be at least 1")
        if rel_pos_bias and (any(self.causal) or not all(w % 2 for w in self.window)):
            raise ValueError(
                f"window={window}, causal={causal}: a relative position bias needs odd windows and no causal axis; "
                "pass rel_pos_bias=False for others"
            )
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.zeros(num_heads, *(2 * w - 1 for w in self.window))) if rel_pos_bias else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if self.rpb is not None:
            trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        dilation = self.dilation
        if dilation is None:
            dilation = tuple(max(extent // w, 1) for extent, w in zip((height, width), self.window, strict=True))
        pad_height = max(self.window[0] * dilation[0] - height, 0)
        pad_width = max(self.window[1] * dilation[1] - width, 0)
        if pad_height or pad_width:
            x = F.pad(x, (0, 0, 0, pad_width, 0, pad_height))
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        x = neighborhood_attention_packed(
            qkv, self.window, stride=self.stride, dilation=dilation, causal=self.causal, bias=self.rpb
        )
        if pad_height or pad_width:
            x = x[:, :height, :width]
        return self.proj_drop(self.proj(x.flatten(-2)))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window={self.window}, dilation={self.dilation}"
