"""MLPs with a convolution inside, which tells tokens their surroundings."""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from .depthwise import DepthwiseConv2d
from .mlp import activate
from .plain import is_plain


class ConvMLP(nn.Module):
    """Linear, depthwise convolution with GELU, linear over a channels-last map, [B, H, W, C] -> [B, H, W, C].

    Args:
        dim, hidden_dim: channels C, and channels between the linear layers.
        kernel_size: odd extent of the depthwise convolution, which is zero-padded to keep the map.
        drop: probability of dropout after GELU and after the last layer; one value, or one for each.

    Source: Mix-FFN of arXiv 2105.15203; with GELU after the convolution as in VAN, arXiv 2202.09741, and LITv2,
    arXiv 2205.13213.
    """

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int = 3, drop: float | tuple[float, float] = 0.0):
        super().__init__()
        drop1, drop2 = to_2tuple(drop)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv2d(hidden_dim, kernel_size, activation="gelu")
        self.drop1 = nn.Dropout(drop1)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop2 = nn.Dropout(drop2)

    @property
    def takes_gain(self) -> bool:
        """Whether `forward` takes a gain."""
        return is_plain(self.fc2)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return the output, times `gain` [C] if there is one.

        Its gradient comes out of that of the last layer's weight, not out of a pass over the map.
        """
        x = self.drop1(self._expand(x))
        if gain is None:
            return self.drop2(self.fc2(x))
        return self.drop2(F.linear(x, self.fc2.weight * gain[:, None], self.fc2.bias * gain))

    def _expand(self, x: Tensor) -> Tensor:
        """Return what the convolution makes of the first linear layer's output.

        In compiled training the gradient of that layer's bias is taken where the map's is made, not from the map.
        """
        if torch.compiler.is_compiling() and torch.is_grad_enabled() and is_plain(self.fc1):
            return self.dwconv(F.linear(x, self.fc1.weight, self.fc1.bias.detach()), x_bias=self.fc1.bias)
        return self.dwconv(self.fc1(x))


class ResidualConvMLP(nn.Module):
    """Linear, GELU, a depthwise convolution added to its input, linear: [B, H, W, C] -> [B, H, W, C].

    Args:
        dim, hidden_dim: channels C, and channels between the linear layers.

    Source: the feed-forward networks of qhfan/RALA and ZacharyMeng/NaLaFormer.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.dwconv = DepthwiseConv2d(hidden_dim, residual=True)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dwconv(activate(self.act, self.fc1(x))))
