"""Large kernel attention as a layer: the gate of wide convolutions between two projections."""

from torch import Tensor, nn

from ..kernels.large_kernel import large_kernel_attention
from .mixers import register_mixer


@register_mixer("lka")
class LargeKernelAttention(nn.Module):
    """Gate each token by a large-kernel convolution, on a channels-last map: [B, H, W, C] -> [B, H, W, C].

    x + proj(u * point(spatial(local(u)))) with u = GELU(proj_in(x)). The shortcut is part of the layer: it adds what
    the layer is given, in a pre-norm block the normed map.

    Args:
        dim: channels C.
        kernel_size: odd extent of the local depthwise convolution.
        dilated_kernel_size, dilation: odd extent and dilation of the second (spatial) depthwise convolution.

    Raises:
        ValueError: a kernel has an even or no extent, or `dilation` is less than 1.

    Source: arXiv 2202.09741 and Visual-Attention-Network/VAN-Classification.
    """

    def __init__(self, dim: int, kernel_size: int = 5, dilated_kernel_size: int = 7, dilation: int = 3):
        super().__init__()
        for name, size in (("kernel_size", kernel_size), ("dilated_kernel_size", dilated_kernel_size)):
            if size < 1 or size % 2 == 0:
                raise ValueError(f"{name}={size} must be odd and at least 1")
        if dilation < 1:
            raise ValueError(f"dilation={dilation} must be at least 1")
        self.proj_in = nn.Linear(dim, dim)
        self.local = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        reach = dilated_kernel_size // 2 * dilation
        self.spatial = nn.Conv2d(dim, dim, dilated_kernel_size, padding=reach, dilation=dilation, groups=dim)
        self.point = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gated = large_kernel_attention(
            self.proj_in(x),
            self.local.weight,
            self.spatial.weight,
            self.point.weight,
            self.local.bias,
            self.spatial.bias,
            self.point.bias,
            self.spatial.dilation,
            activation="gelu",
        )
        return x + self.proj(gated)
