"""HiLo attention: some heads look closely at small windows, the others coarsely at the whole map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.window import window_attention
from .mixers import register_mixer


@register_mixer("hilo")
class HiLo(nn.Module):
    """Attention of high and low frequencies over a channels-last map, [B, H, W, C] -> [B, H, W, C].

    High-frequency heads attend inside windows of `window` x `window` tokens. Low-frequency heads attend from every
    token to the averages of the windows. Both have projections of their own; their outputs are joined on channels.

    A map that is no multiple of the window is zero-padded at the bottom and right. Padding tokens enter the averages,
    and through the biases of the projections they act as keys, as in the released detection and segmentation code; on
    maps that fit, that code and the classification code agree.

    Args:
        dim: channels C, a multiple of `num_heads`.
        window: extent of the windows. With 1 all heads are low-frequency heads, which is plain attention.
        alpha: share of the low-frequency heads, rounded down to whole heads.
        qkv_bias: whether the projections to queries, keys and values have biases.
        scale: factor of q . k; default (C / num_heads) ** -0.5.
        pad: whether to pad. Without, averages leave out the last rows and columns of a map that does not fit, and
            high-frequency heads raise ValueError.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`, or `window` or `alpha` is out of range.

    Source: arXiv 2205.13213; ziplab/LITv2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int = 2,
        alpha: float = 0.5,
        qkv_bias: bool = True,
        scale: float | None = None,
        pad: bool = True,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        if window < 1:
            raise ValueError(f"window={window} must be at least 1")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must be from 0 to 1")
        head_dim = dim // num_heads
        self.window = window
        self.scale = head_dim**-0.5 if scale is None else scale
        self.pad = pad
        self.low_heads = num_heads if window == 1 else int(num_heads * alpha)
        self.high_heads = num_heads - self.low_heads
        low_dim, high_dim = self.low_heads * head_dim, self.high_heads * head_dim
        if self.low_heads:
            self.l_q = nn.Linear(dim, low_dim, bias=qkv_bias)
            self.l_kv = nn.Linear(dim, 2 * low_dim, bias=qkv_bias)
            self.l_proj = nn.Linear(low_dim, low_dim)
        if self.high_heads:
            self.h_qkv = nn.Linear(dim, 3 * high_dim, bias=qkv_bias)
            self.h_proj = nn.Linear(high_dim, high_dim)

    def forward(self, x: Tensor) -> Tensor:
        padded = x
        pad_height, pad_width = -x.shape[1] % self.window, -x.shape[2] % self.window
        if self.pad and (pad_height or pad_width):
            padded = F.pad(x, (0, 0, 0, pad_width, 0, pad_height))
        if not self.low_heads:
            return self._high(x, padded)
        if not self.high_heads:
            return self._low(x, padded)
        return torch.cat((self._high(x, padded), self._low(x, padded)), dim=-1)

    def _high(self, x: Tensor, padded: Tensor) -> Tensor:
        """Attend inside the windows of the padded map, then crop it to the map."""
        q, k, v = self.h_qkv(padded).unflatten(-1, (3, self.high_heads, -1)).unbind(-3)
        out = window_attention(q, k, v, self.window, scale=self.scale)
        return self.h_proj(out[:, : x.shape[1], : x.shape[2]].flatten(-2))

    def _low(self, x: Tensor, padded: Tensor) -> Tensor:
        """Attend from the tokens of the map to the windows' averages of the padded one."""
        if self.window > 1:
            padded = F.avg_pool2d(padded.permute(0, 3, 1, 2), self.window).permute(0, 2, 3, 1)
        q = self.l_q(x).flatten(1, 2).unflatten(-1, (self.low_heads, -1)).transpose(1, 2)
        k, v = self.l_kv(padded).flatten(1, 2).unflatten(-1, (2, self.low_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.l_proj(out.transpose(1, 2).flatten(-2)).unflatten(1, x.shape[1:3])

    def extra_repr(self) -> str:
        return f"high_heads={self.high_heads}, low_heads={self.low_heads}, window={self.window}"
