"""Positions that tokens read off their neighbours."""

from torch import Tensor, nn


class ConditionalPosition(nn.Module):
    """Add a 3x3 depthwise convolution to a channels-last map, [B, H, W, C] -> [B, H, W, C].

    Source: conditional positional encoding, arXiv 2102.10882.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
