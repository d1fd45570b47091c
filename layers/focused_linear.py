"""Focused linear attention: the core of FLatten Transformer."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..kernels.depthwise import depthwise_conv2d
from ..kernels.linear import linear_attention
from .attention_core import AttentionCore, Layout, add_local, as_map
from .depthwise import DepthwiseConv2d
from .position import resize_codes


class FocusedLinearCore(AttentionCore):
    """Linear attention with a focused feature map, and a depthwise convolution of the values that the heads share.

    Keys get a learned position, made for maps of size `key_grid` and resampled bicubically for any other, as the
    released fine-tuning code does it. Values of a reduced map are brought to the queries' tokens by linear
    interpolation along the flattened map before the convolution. Prefix tokens take part in the attention alone.

    Args:
        grid, key_grid: map size (H, W) of queries and of keys; `key_grid` defaults to `grid`.
        focusing_factor: exponent of the feature map.
        kernel_size: extent of the convolution, odd.

    Source: arXiv 2308.00442; LeapLabTHU/FLatten-Transformer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        focusing_factor: float = 3,
        kernel_size: int = 5,
    ):
        super().__init__(dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd and at least 1")
        self.focusing_factor = focusing_factor
        head_dim = dim // num_heads
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.zeros(*to_2tuple(grid if key_grid is None else key_grid), dim))
        self.dwc = DepthwiseConv2d(head_dim, kernel_size)

    def set_grid(self, grid: tuple[int, int], key_grid: tuple[int, int] | None = None) -> None:
        with torch.no_grad():
            table = resize_codes(self.positional_encoding, grid if key_grid is None else key_grid, "bicubic")
            self.positional_encoding = nn.Parameter(table.clone())

    def resized(self, name: str, table: Tensor) -> Tensor:
        if name != "positional_encoding":
            return table
        size = self.positional_encoding.shape[:2]
        if table.shape[1] == size[0] * size[1]:
            return table.reshape(self.positional_encoding.shape)
        if table.shape[0] == 1:
            side = math.isqrt(table.shape[1])
            table = table.reshape(side, side, -1)
        return resize_codes(table, size, "bicubic")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        grid, key_grid, prefixed, _ = layout
        position = resize_codes(self.positional_encoding, key_grid, "bicubic").flatten(0, 1)
        k = k + F.pad(position, (0, 0, prefixed, 0))
        scale = self.split(self.scale[0, 0])
        out = linear_attention(
            self.split(q),
            self.split(k).to(q.dtype),
            self.split(v),
            "focused",
            query_parameter=scale,
            key_parameter=scale,
            mean=True,
            power=self.focusing_factor,
        ).flatten(-2)
        values = v[:, prefixed:]
        if layout.reduced:
            values = F.interpolate(values.mT, size=grid[0] * grid[1], mode="linear", align_corners=False).mT
        weight, bias = self.dwc.weight.repeat(self.num_heads, 1, 1, 1), self.dwc.bias.repeat(self.num_heads)
        return add_local(out, partial(depthwise_conv2d, weight=weight, bias=bias), as_map(values, grid), prefixed)
