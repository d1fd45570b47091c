"""CARE: linear attention and convolutions of different channels, and what makes them one map again."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.linear import linear_attention
from .depthwise import DepthwiseConv2d
from .mixers import register_mixer
from .norm import BatchNorm


class Interaction(nn.Module):
    """Batch norm, linear, GELU, 3x3 depthwise convolution, linear, added to the map: [B, H, W, C] -> [B, H, W, C].

    Args:
        dim: channels C.
        ratio: channels between the linear layers over C.
        project: False to return the map of the convolution, [B, H, W, ratio * C], and add nothing.

    Source: arXiv 2411.16170; zhouyuan888888/CARE-Transformer.
    """

    def __init__(self, dim: int, ratio: int, project: bool = True):
        super().__init__()
        hidden_dim = ratio * dim
        self.norm = BatchNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv2d(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim) if project else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.dwconv(F.gelu(self.fc1(self.norm(x))))
        return out if self.fc2 is None else x + self.fc2(out)


@register_mixer("care")
class CAREMixer(nn.Module):
    """Linear attention and depthwise convolutions side by side, on a channels-last map: [B, H, W, C] -> [B, H, W, C].

    Of four groups of C / 4 channels the first is the memory, the second is attended linearly, and the third and fourth
    are convolved 3x3 and 7x7. One interaction joins these three, a second one the memory and these. Both have shortcuts
    of their own, so that the layer adds to what it is given.

    Args:
        dim: channels C, a multiple of 4.
        num_heads: heads of the attention, which divide the C / 4 channels of its group; None to put the sum of a 11x1
            and a 1x11 depthwise convolution in its place.
        ratios: channels inside the first and the second interaction over those outside.
        project: False to end inside the second interaction, with [B, H, W, ratios[1] * C].

    Raises:
        ValueError: `dim` cannot be split like that, or a ratio is less than 1.

    Source: arXiv 2411.16170; zhouyuan888888/CARE-Transformer.
    """

    def __init__(self, dim: int, num_heads: int | None = None, ratios: tuple[int, int] = (4, 4), project: bool = True):
        super().__init__()
        unit = 4 if num_heads is None else 4 * num_heads
        if unit < 1 or dim % unit:
            raise ValueError(f"dim={dim} must be a multiple of 4 * num_heads, num_heads={num_heads}, or of 4 without")
        if min(ratios) < 1:
            raise ValueError(f"ratios={tuple(ratios)} must be at least 1")
        group = dim // 4
        self.num_heads = num_heads
        if num_heads is None:
            self.strips = nn.ModuleList((DepthwiseConv2d(group, (11, 1)), DepthwiseConv2d(group, (1, 11))))
        else:
            self.qk = nn.Linear(group, 2 * group)
        self.local = nn.ModuleList((DepthwiseConv2d(group, 3), DepthwiseConv2d(group, 7)))
        self.inner = Interaction(3 * group, ratios[0])
        self.outer = Interaction(dim, ratios[1], project)

    def forward(self, x: Tensor) -> Tensor:
        memory, far, near, middle = x.chunk(4, -1)
        far = self._attend(far) if self.num_heads else self.strips[0](far) + self.strips[1](far)
        features = torch.cat((far, self.local[0](near), self.local[1](middle)), -1)
        return self.outer(torch.cat((memory.to(features.dtype), self.inner(features)), -1))

    def _attend(self, x: Tensor) -> Tensor:
        q, k = (part.unflatten(-1, (self.num_heads, -1)) for part in self.qk(x).chunk(2, -1))
        v = x.unflatten(-1, (self.num_heads, -1)).to(q.dtype)
        return linear_attention(q, k, v, "elu_plus_one", mean=True).flatten(-2)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"
