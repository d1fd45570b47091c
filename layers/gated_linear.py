"""Gated linear attention over a map, both ways: the mixer of ViG and ViG-H."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.gated_linear import gated_linear_attention
from ..kernels.precision import widen
from .depthwise import DepthwiseConv2d
from .mixers import register_mixer
from .norm import RMSNorm

NORMALIZER = 16.0
"""What the logarithms of gates are divided by: at its start a gate halves what is 16 tokens away."""


@register_mixer("gla")
class GatedLinearAttention(nn.Module):
    """A depthwise convolution, and gated linear attention of what it gives, mixed by a gate: [B, H, W, C] -> the same.

    With l the convolution of x, queries and keys of C / 2 channels, values of C, and for each way over the map the
    gates of what is remembered, one for each channel of the keys, are linear in l. The attention's output o and l get
    an RMS norm in each head, and proj(g norm(o) + (1 - g) norm(l)) comes out, g the sigmoid of a linear map of l.

    Args:
        dim: channels C, a multiple of 2 `num_heads`.
        gate_rank: rank of the linear map that makes the gates of what is remembered.
        conv_act, out_act: whether SiLU follows the convolution, and comes before the last projection, as in ViG-T.
        halve_in_eval: halve the attention's output in evaluation mode, as the released ViG does; but for the norm's
            epsilon, 1e-6, the norm undoes it.

    Raises:
        ValueError: `dim` is no multiple of 2 `num_heads`, or `gate_rank` less than 1.

    Source: ViG, arXiv 2405.18425; hustvl/ViG.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        gate_rank: int = 16,
        conv_act: bool = False,
        out_act: bool = False,
        halve_in_eval: bool = False,
    ):
        super().__init__()
        if num_heads < 1 or dim % (2 * num_heads):
            raise ValueError(f"dim={dim} must be a multiple of 2 num_heads, num_heads={num_heads}")
        if gate_rank < 1:
            raise ValueError(f"gate_rank={gate_rank} must be at least 1")
        norm = partial(RMSNorm, dim // num_heads, eps=1e-6)
        self.num_heads = num_heads
        self.halve_in_eval = halve_in_eval
        self.conv = DepthwiseConv2d(dim, bias=False)
        self.conv_act = nn.SiLU() if conv_act else nn.Identity()
        self.qkv = nn.Linear(dim, 2 * dim, bias=False)
        self.memory = nn.Sequential(nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, dim))
        self.gate = nn.Linear(dim, dim)
        self.norm = norm()
        self.local_norm = norm()
        self.out_act = nn.SiLU() if out_act else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv_act(self.conv(x))
        dim = x.shape[-1]
        q, k, v = map(self._split, self.qkv(local).split((dim // 2, dim // 2, dim), -1))
        gates = map(self._split, (F.logsigmoid(widen(self.memory(local))) / NORMALIZER).chunk(2, -1))
        scale = q.shape[-1] ** -0.5 * (0.5 if self.halve_in_eval and not self.training else 1.0)
        out = self.norm(gated_linear_attention(q, k, v, *gates, scale=scale))
        near = self.local_norm(self._split(local))
        mixed = near + self._split(self.gate(local).sigmoid()) * (out - near)
        return self.proj(self.out_act(mixed.flatten(-2)))

    def _split(self, x: Tensor) -> Tensor:
        """[B, H, W, channels] -> [B, H, W, heads, channels of a head]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, halve_in_eval={self.halve_in_eval}"
