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
    """One convolution over disjoint patches, then a norm: [B, C, H, W] -> [B, ceil(H/patch), ceil(W/patch), dim].

    The image is zero-padded at the bottom and right to a multiple of the patch.
    Source: arXiv 2103.14030, as used by DiNAT_s and the isotropic models of arXiv 2209.15001.
    """

    def __init__(self, in_chans: int, dim: int, patch: int = 4, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.stride = patch
        self.conv = nn.Conv2d(in_chans, dim, kernel_size=patch, stride=patch)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        pad_height, pad_width = -x.shape[-2] % self.stride, -x.shape[-1] % self.stride
        if pad_height or pad_width:
            x = F.pad(x, (0, pad_width, 0, pad_height))
        x = x.contiguous(memory_format=torch.channels_last)
        return self.norm(self.conv(x).permute(0, 2, 3, 1))
