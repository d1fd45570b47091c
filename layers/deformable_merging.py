"""Deformable token merging: a downsampler that learns which tokens to join."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, deform_conv2d

from .norm import BatchNorm


class DeformableMerging(nn.Module):
    """Join four tokens, each shifted by a learnt offset, [B, H, W, in_dim] -> [B, floor(H/2), floor(W/2), dim].

    A deformable 2x2 convolution of stride 2, batch norm and GELU. The last row or column of an odd map takes part only
    through offsets; an axis of a single token is zero-padded to two. The sampling is done in at least float32, under
    autocast too.

    Source: arXiv 2105.14217; ziplab/LITv2, whose own deformable convolution equals torchvision's without mask. On CUDA
    its gradient adds in no fixed order, which torch's deterministic mode refuses.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.offset = nn.Conv2d(in_dim, 8, kernel_size=2, stride=2)
        self.conv = DeformConv2d(in_dim, dim, kernel_size=2, stride=2)
        self.norm = BatchNorm(dim)
        self.act = nn.GELU()
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        pad_height, pad_width = max(2 - x.shape[1], 0), max(2 - x.shape[2], 0)
        if pad_height or pad_width:
            x = F.pad(x, (0, 0, 0, pad_width, 0, pad_height))
        tokens = x.permute(0, 3, 1, 2)
        dtype = torch.promote_types(x.dtype, torch.float32)
        sampled = (t.to(dtype) for t in (tokens, self.offset(tokens), self.conv.weight, self.conv.bias))
        merged = deform_conv2d(*sampled, stride=2).to(x.dtype, memory_format=torch.channels_last)
        return self.act(self.norm(merged.permute(0, 2, 3, 1)))
