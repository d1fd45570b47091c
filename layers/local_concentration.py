"""Local concentration: the convolutions that L2ViT has beside linear attention."""

from collections.abc import Callable

from timm.layers import DropPath
from torch import Tensor, nn

from .depthwise import DepthwiseConv2d


class LocalConcentration(nn.Module):
    """Norm, then two depthwise convolutions with GELU and batch norm between, as a residual branch of a map.

    [B, H, W, C] -> [B, H, W, C]; it gathers what linear attention spreads out.

    Args:
        dim: channels C.
        norm: builder of the norm.
        kernel_size: odd extent of both convolutions.
        drop_path: probability of dropping the branch, per sample, in training.

    Source: arXiv 2501.16182; ChuanyangZheng/L2ViT.
    """

    def __init__(
        self,
        dim: int,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        kernel_size: int = 7,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm = norm(dim)
        self.conv1 = DepthwiseConv2d(dim, kernel_size, activation="gelu")
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = DepthwiseConv2d(dim, kernel_size)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv1(self.norm(x))
        local = self.bn(local.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.conv2(local))
