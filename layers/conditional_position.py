"""Positions that tokens read off their neighbours."""

from torch import Tensor, nn

from .depthwise import DepthwiseConv2d


class ConditionalPosition(nn.Module):
    """Add a 3x3 depthwise convolution to a channels-last map, [B, H, W, C] -> [B, H, W, C].

    Source: conditional positional encoding, arXiv 2102.10882.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = DepthwiseConv2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)
