"""CSwin's attention: stripes of the map, upright for one half of the heads and lying for the other."""

from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..kernels.window import window_attention
from .attention_core import AttentionCore
from .depthwise import DepthwiseConv2d
from .mixers import register_mixer
from .qkv import build_core, project
from .softmax import SoftmaxCore


@register_mixer("cross_shaped")
class CrossShapedAttention(nn.Module):
    """Token mixer of a map's stripes around any attention core, [B, H, W, C] -> [B, H, W, C].

    One projection gives queries, keys and values. The first half of their channels, and of the heads, attends inside
    upright stripes of `stripe` columns, the second inside lying stripes of `stripe` rows; a last stripe that is
    narrower holds what is left. Of an odd number of heads, upright stripes get one more; a single head is halved.
    Without stripes all channels attend in the whole map. To each half's output its values are added, convolved
    depthwise inside the stripes (LePE), and an output projection follows.

    Called with a second map, which a block with this mixer takes for its own input before the norm, cores with
    `needs_mean` read that one's mean.

    Args:
        core: name of the attention core.
        stripe: extent of the stripes, or None for the whole map.
        grid: map size (H, W) that the core's tables are made for.
        options: the core's own.

    Raises:
        ValueError: `stripe` is below 1, or `dim` is no multiple of `num_heads`, of 2 where there is one head.

    Source: CSWin Transformer, arXiv 2107.00652, as FLatten, Agent and InLine build it. Theirs fail on stripes of
    focused linear and InLine attention; here the mean that InLine reads is always that of the whole map.
    """

    reads_block_input = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        core: str = "softmax",
        stripe: int | None = 7,
        grid: int | tuple[int, int] = 14,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        **options: Any,
    ):
        super().__init__()
        if stripe is not None and stripe < 1:
            raise ValueError(f"stripe={stripe} must be at least 1, or None for no stripes")
        axes = (None,) if stripe is None else (1, 0)
        heads = max(num_heads, len(axes))
        if num_heads < 1 or dim % heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}, and of 2 where there are stripes")
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.branches = nn.ModuleList()
        for index, axis in enumerate(axes):
            extent = _window(to_2tuple(grid), axis, stripe)
            share = (heads + 1 - index) // len(axes) if len(axes) > 1 else heads
            attention = build_core(core, dim // heads * share, share, extent, **options)
            self.branches.append(StripeAttention(attention, axis, stripe))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample the cores' tables for maps of size `grid` (H, W)."""
        for branch in self.branches:
            branch.core.set_grid(_window(grid, branch.axis, branch.stripe))

    def forward(self, x: Tensor, block_input: Tensor | None = None) -> Tensor:
        widths = [branch.core.dim for branch in self.branches]
        means = [None] * len(widths)
        if self.branches[0].core.needs_mean:
            means = (x if block_input is None else block_input).mean((1, 2)).split(widths, -1)
        q, k, v = (part.split(widths, -1) for part in project(self.qkv, x, [x.shape[-1]] * 3))
        out = [branch(*inputs) for branch, *inputs in zip(self.branches, q, k, v, means, strict=True)]
        return self.proj_drop(self.proj(torch.cat(out, -1) if len(out) > 1 else out[0]))


class StripeAttention(nn.Module):
    """Attention of projected maps [B, H, W, C] inside stripes, with the values' convolution: [B, H, W, C].

    Args:
        core: the attention, for C channels.
        axis: along which stripes follow each other, 0 (rows) or 1 (columns); None for the whole map.
        stripe: rows or columns of a stripe.
    """

    def __init__(self, core: AttentionCore, axis: int | None, stripe: int | None):
        super().__init__()
        self.core = core
        self.axis = axis
        self.stripe = stripe
        self.lepe = DepthwiseConv2d(core.dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mean: Tensor | None = None) -> Tensor:
        if self.axis is None:
            return self._attend(q, k, v, mean, q.shape[1:3])
        along = 1 + self.axis
        length = q.shape[along]
        out, start = [], 0
        for stripe, rows in ((self.stripe, length - length % self.stripe), (length % self.stripe,) * 2):
            if rows:
                parts = (x.narrow(along, start, rows) for x in (q, k, v))
                out.append(self._attend(*parts, mean, _window(q.shape[1:3], self.axis, stripe)))
            start += rows
        return torch.cat(out, along) if len(out) > 1 else out[0]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mean: Tensor | None, window: tuple[int, int]) -> Tensor:
        """Attend inside windows that divide the map."""
        values = _cut(v, window)
        if isinstance(self.core, SoftmaxCore) and self.axis is not None:
            out = window_attention(*(self.core.split(x) for x in (q, k, v)), window).flatten(-2)
            return out + _join(self.lepe(values), out)
        if mean is not None:
            mean = mean.repeat_interleave(q.shape[1] * q.shape[2] // (window[0] * window[1]), 0)
        out = self.core(*(x.flatten(1, 2) for x in (_cut(q, window), _cut(k, window), values)), window, mean=mean)
        return _join(self.lepe(values, add=out.view(values.shape)), q)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, stripe={self.stripe}"


def _window(size: tuple[int, int], axis: int | None, stripe: int | None) -> tuple[int, int]:
    """Return the size of a stripe of a map of `size`."""
    return tuple(stripe if place == axis else length for place, length in enumerate(size))


def _cut(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the windows of a map [B, H, W, C] as maps of their own, [B * windows, *window, C]."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(0, 2)


def _join(x: Tensor, like: Tensor) -> Tensor:
    """Undo `_cut` for a map of the size of `like`, [B, H, W, C]."""
    counts = [length // extent for length, extent in zip(like.shape[1:3], x.shape[1:3], strict=True)]
    return x.unflatten(0, (-1, *counts)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
