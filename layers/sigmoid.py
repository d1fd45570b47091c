"""Sigmoid attention: weights that do not depend on each other."""

import math

import torch
from torch import Tensor, nn

from ..kernels import autocast
from ..kernels.precision import narrow, widen
from .attention_core import AttentionCore, Layout


class SigmoidCore(AttentionCore):
    """Attention among all tokens with weights sigmoid(q . k D ** -0.5 exp(temperature) + bias), not divided by a sum.

    Scores and weights are taken in float32 at least. Cost and memory grow with the square of the tokens.

    Args:
        grid, key_grid, num_prefix_tokens: without effect; nothing here depends on places.
        bias: added to all scores; by default -ln of the number of keys, whatever it is in a call.
        temperature: logarithm of a further factor of the scores.
        qk_norm: whether queries and keys have a LayerNorm over the channels of a head.

    Source: arXiv 2409.04431; apple/ml-sigmoid-attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        bias: float | None = None,
        temperature: float = 0.0,
        qk_norm: bool = False,
    ):
        super().__init__(dim, num_heads)
        width = dim // num_heads
        self.bias = bias
        self.scale = width**-0.5 * math.exp(temperature)
        self.q_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = self.q_norm(self.split(q)), self.k_norm(self.split(k)), self.split(v)
        dtype = v.dtype
        with autocast.off(v):
            q, k, v = (widen(x).transpose(1, 2) for x in (q, k, v))
            scores = q * self.scale @ k.mT
            bias = -scores.new_full((), k.shape[2]).log() if self.bias is None else self.bias
            return narrow((torch.sigmoid(scores + bias) @ v).transpose(1, 2).flatten(-2), dtype)
