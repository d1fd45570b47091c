"""Depthwise convolution as a module on channels-last maps."""

from collections.abc import Sequence

from timm.layers import to_2tuple
from torch import Tensor, nn

from ..kernels.depthwise import depthwise_conv2d


class DepthwiseConv2d(nn.Conv2d):
    """Convolve each channel with its own kernel, zero-padded to keep the map: [B, H, W, C] -> [B, H, W, C].

    Parameters are named and shaped as torch.nn.Conv2d has them.

    Args:
        dim: channels C.
        kernel_size: odd extent; one value, or one for rows and one for columns.
        activation: "gelu" for GELU of the convolution, or None.
        residual: whether the input is added at the end.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int | Sequence[int] = 3,
        bias: bool = True,
        activation: str | None = None,
        residual: bool = False,
    ):
        kernel_size = to_2tuple(kernel_size)
        padding = tuple(size // 2 for size in kernel_size)
        super().__init__(dim, dim, kernel_size, padding=padding, groups=dim, bias=bias)
        self.activation, self.residual = activation, residual

    def forward(self, x: Tensor, x_bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        """Return the output; `x_bias` and `add` are as for `depthwise_conv2d`."""
        options = {"activation": self.activation, "residual": self.residual}
        return depthwise_conv2d(x, self.weight, self.bias, x_bias=x_bias, add=add, **options)

    def extra_repr(self) -> str:
        activation = f", activation={self.activation}" if self.activation else ""
        return f"{super().extra_repr()}{activation}{', residual=True' if self.residual else ''}"
