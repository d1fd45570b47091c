"""Deformable token merging: a downsampler that learns which tokens to join."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import autocast
from .norm import BatchNorm


class DeformableMerging(nn.Module):
    """Join four tokens, each shifted by a learnt offset, [B, H, W, in_dim] -> [B, floor(H/2), floor(W/2), dim].

    A deformable 2x2 convolution of stride 2, batch norm and GELU. The last row or column of an odd map takes part only
    through offsets; an axis of a single token is zero-padded to two. Autocast does not reach the convolution, because a
    residual stream starts at its output; offsets are added in at least float32.

    Source: arXiv 2105.14217; ziplab/LITv2. Its convolution is `torchvision.ops.deform_conv2d` without mask, whose
    gradient on CUDA adds in no fixed order, and which takes one core of a CPU.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.offset = nn.Conv2d(in_dim, 8, kernel_size=2, stride=2)
        self.conv = nn.Conv2d(in_dim, dim, kernel_size=2, stride=2)
        self.norm = BatchNorm(dim)
        self.act = nn.GELU()
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        pad_height, pad_width = max(2 - x.shape[1], 0), max(2 - x.shape[2], 0)
        if pad_height or pad_width:
            x = F.pad(x, (0, 0, 0, pad_width, 0, pad_height))
        with autocast.off(x):
            x = x.to(self.conv.weight.dtype)
            offset = self.offset(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = self.conv(shift(x, offset).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.act(self.norm(x))


def shift(x: Tensor, offset: Tensor) -> Tensor:
    """Read a map bilinearly at every token's place plus its offset; outside it is zero.

    Args:
        x: [B, H, W, C].
        offset: [B, h, w, 8] in tokens: (dy, dx) of each token of 2x2 neighbours, row-major; 2h <= H and 2w <= W.

    Returns:
        [B, 2h, 2w, C] in the dtype of x.
    """
    batch, height, width, channels = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    pairs = offset.to(dtype).unflatten(-1, (2, 2, 2)).permute(0, 1, 3, 2, 4, 5)
    down, right = pairs.flatten(3, 4).flatten(1, 2).unbind(-1)
    down = down + torch.arange(down.shape[1], device=x.device)[:, None]
    right = right + torch.arange(right.shape[2], device=x.device)
    top, left = down.floor(), right.floor()
    image = torch.arange(batch, device=x.device)[:, None, None] * (height * width)
    tokens, shares = [], []
    for row, row_share in ((top, top + 1 - down), (top + 1, down - top)):
        for column, column_share in ((left, left + 1 - right), (left + 1, right - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            # Offsets that are not numbers read some token, and stay what they are through their share.
            tokens.append(torch.where(inside, image + row.long() * width + column.long(), 0).flatten())
            shares.append((inside * row_share * column_share).flatten())
    # A weighted sum of rows, which unlike gathering keeps no copy of the four, and adds in a fixed order.
    out = F.embedding_bag(
        torch.stack(tokens, 1), x.reshape(-1, channels).to(dtype), per_sample_weights=torch.stack(shares, 1), mode="sum"
    )
    return out.to(x.dtype).unflatten(0, down.shape)
