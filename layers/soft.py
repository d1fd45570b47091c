"""Softmax-free attention: the mixer of SOFT and SOFT++."""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..kernels import autocast
from ..kernels.depthwise import depthwise_conv2d
from ..kernels.newton import newton_inverse, newton_inverse_together
from ..kernels.precision import widen
from .depthwise import DepthwiseConv2d
from .mixers import register_mixer


@register_mixer("soft")
class SoftmaxFreeAttention(nn.Module):
    """Attention of a Gaussian kernel of rank n, the number of landmarks, [B, H, W, C] -> [B, H, W, C].

    Queries are keys too. Each head makes landmarks of them, by a convolution over disjoint patches that the heads
    share, a norm and GELU. With P the kernel of queries and landmarks and A that of landmarks and landmarks it returns
    P A^+ P^T v and adds a convolution of v with one filter a head. A map is dropped at the bottom and right what does
    not fill a patch, and zero-padded to one patch where it is smaller. Kernels and inverse are taken in float32 at
    least.

    Args:
        dim: channels C, a multiple of `num_heads`.
        ratio: extent of the patches: n = (H // ratio) (W // ratio). By default that which leaves at most 7 x 7 of a map
            of size `grid` (H, W), as SOFT has at 224 pixels; 2 without a grid.
        kernel_size: odd extent of the convolution of v, or None for none.
        normalized: D A^+ D instead of A^+, with D the row sums of A to the power of -1/2, as in SOFT++; what becomes of
            an image then depends a little on the batch.
        iterations: of Newton's method for the inverse.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`, `ratio` less than 1, or `kernel_size` even.

    Source: arXiv 2110.11945 and 2207.03341; fudan-zvg/SOFT.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: int | None = None,
        kernel_size: int | None = 3,
        normalized: bool = False,
        iterations: int = 20,
        proj_drop: float = 0.0,
        grid: int | tuple[int, int] | None = None,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        if ratio is None:
            ratio = 2 if grid is None else -(-max(to_2tuple(grid)) // 7)
        if ratio < 1:
            raise ValueError(f"ratio={ratio} must be at least 1")
        if kernel_size is not None and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, or None")
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.ratio = ratio
        self.normalized = normalized
        self.iterations = iterations
        self.q = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.landmark = nn.Conv2d(head_dim, head_dim, ratio, stride=ratio, bias=False)
        self.norm = nn.LayerNorm(head_dim)
        self.local = None
        if kernel_size is not None:
            self.local = DepthwiseConv2d(num_heads, kernel_size, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.q(x).unflatten(-1, (self.num_heads, -1)), self.v(x)
        q = q * q.shape[-1] ** -0.25
        landmarks = self._landmarks(q)
        values = v.unflatten(-1, (self.num_heads, -1))
        with autocast.off(x):
            out = self._attend(*(widen(part.flatten(1, 2).transpose(1, 2)) for part in (q, values)), widen(landmarks))
        out = out.transpose(1, 2).flatten(-2).view(x.shape).to(v.dtype)
        if self.local is not None:
            weight = self.local.weight.repeat_interleave(values.shape[-1], 0).to(v.dtype)
            out = depthwise_conv2d(v, weight, add=out)
        return self.proj_drop(self.proj(out))

    def _landmarks(self, q: Tensor) -> Tensor:
        """[B, H, W, heads, D] -> [B, heads, n, D]."""
        maps = q.permute(0, 3, 4, 1, 2).flatten(0, 1)
        maps = F.pad(maps, (0, max(self.ratio - q.shape[2], 0), 0, max(self.ratio - q.shape[1], 0)))
        landmarks = self.landmark(maps).flatten(2).mT
        return F.gelu(self.norm(landmarks)).unflatten(0, (-1, self.num_heads))

    def _attend(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        near = _gaussian(q, landmarks)
        kernel = _gaussian(landmarks, landmarks)
        if self.normalized:
            scale = kernel.sum(-1).rsqrt()
            inverse = scale[..., None] * newton_inverse_together(kernel, self.iterations) * scale[..., None, :]
        else:
            inverse = newton_inverse(kernel, self.iterations)
        return near @ (inverse @ (near.mT @ v))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, normalized={self.normalized}"


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """Return exp(-|a_i - b_j|^2 / 2), [..., N, n]."""
    lengths = a.square().sum(-1)[..., None] + b.square().sum(-1)[..., None, :]
    return torch.exp(a @ b.mT - lengths / 2)
