"""Downsamplers between stages, [B, H, W, in_dim] -> [B, ceil(H/2), ceil(W/2), dim] unless they say otherwise."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stem import ConvStem, PatchStem


class ConvDownsample(nn.Module):
    """Overlapping 3x3 convolution of stride 2 without bias, then a norm. Source: arXiv 2204.07143."""

    def __init__(self, in_dim: int, dim: int, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.reduction = nn.Conv2d(in_dim, dim, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ConvActDownsample(ConvStem):
    """3x3 convolution of stride 2, batch norm and ReLU. Source: SOFT, arXiv 2110.11945."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__(in_dim, (dim,), (2,))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class PatchDownsample(PatchStem):
    """A `PatchStem` on a channels-last map, over patches of 2 unless told: [B, H, W, in_dim] -> [B, h, w, dim]."""

    # Strided convolutions of channels_last maps round four times as much on CPUs (oneDNN), which shows in the logits.
    cpu_format = torch.contiguous_format

    def __init__(self, in_dim: int, dim: int, patch: int = 2, **kwargs: Any):
        super().__init__(in_dim, dim, patch, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class NormPatchDownsample(nn.Module):
    """Norm, then a convolution of 2x2 patches. Source: arXiv 2201.03545.

    Odd maps end in a zero row or column, or without `ceil_mode` lose their last one, as in `PatchStem`.
    """

    def __init__(self, in_dim: int, dim: int, norm: Callable[[int], nn.Module] = nn.LayerNorm, ceil_mode: bool = True):
        super().__init__()
        self.norm = norm(in_dim)
        self.patch = PatchDownsample(in_dim, dim, norm=nn.Identity, ceil_mode=ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.patch(self.norm(x))


class PatchMerging(nn.Module):
    """Join 2x2 neighbours, norm, and project; odd maps end in a zero row or column. Source: arXiv 2103.14030."""

    def __init__(self, in_dim: int, dim: int, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.norm = norm(4 * in_dim)
        self.reduction = nn.Linear(4 * in_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # The released order of neighbours is (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))
