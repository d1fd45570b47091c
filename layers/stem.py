"""Stems: from an image [B, C, H, W] to the first channels-last map [B, h, w, dim]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvTokenizer(nn.Module):
    """Two overlapping 3x3 convolutions of stride 2, then a norm: [B, C, H, W] -> [B, ceil(H/4), ceil(W/4), dim].

    Source: the tokenizer of arXiv 2204.07143.
    """

    stride = 4

    def __init__(self, in_chans: int, dim: int, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        # Three channels are cheap to reorder; from here on every map is channels-last in memory.
        x = x.contiguous(memory_format=torch.channels_last)
        return self.norm(self.conv2(self.conv1(x)).permute(0, 2, 3, 1))


class PatchStem(nn.Module):
    """One convolution, over disjoint patches unless told, then a norm: [B, C, H, W] -> [B, h, w, dim].

    The image is zero-padded at the bottom and right: to a multiple of the patch, so that h = ceil(H / patch); without
    `ceil_mode` only to what gives the smallest map, 1, and the convolution drops what remains.

    Args:
        patch: stride of the convolution.
        kernel, padding: its kernel, the patch by default, and the zeros on every side.

    Source: arXiv 2103.14030, as used by DiNAT_s, the isotropic models of arXiv 2209.15001, and arXiv 2203.11926.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch: int = 4,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        kernel: int | None = None,
        padding: int = 0,
        ceil_mode: bool = True,
    ):
        super().__init__()
        self.stride = patch
        self.ceil_mode = ceil_mode
        self.conv = nn.Conv2d(in_chans, dim, kernel or patch, stride=patch, padding=padding)
        self.smallest = max((kernel or patch) - 2 * padding, 1)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        pad_height, pad_width = self._lack(x.shape[-2]), self._lack(x.shape[-1])
        if pad_height or pad_width:
            x = F.pad(x, (0, pad_width, 0, pad_height))
        x = x.contiguous(memory_format=self.memory_format)
        # A batch norm would keep other strides, and all blocks after it.
        return self.norm(self.conv(x).permute(0, 2, 3, 1).contiguous())

    def _lack(self, extent: int) -> int:
        return -extent % self.stride if self.ceil_mode else max(self.smallest - extent, 0)
