"""Performer: softmax attention estimated by random features."""

import math
from typing import Self

import torch
from torch import Tensor

from ..kernels.linear import linear_attention
from .attention_core import AttentionCore, Layout

KERNELS = {
    "softmax": ("favor_query", "favor_key"),
    "relu": ("favor_relu", "favor_relu"),
    "none": ("softmax_channels", "softmax_tokens"),
}


class PerformerCore(AttentionCore):
    """Linear attention of random features, whose expectation is softmax attention.

    The directions, which the heads share, are the buffer `projection_matrix` [features, D], drawn from torch's
    generator. With `redraws` new ones are drawn where training goes on after an evaluation, hence never between a
    forward pass and its backward; the buffer `evaluated` remembers that one took place. An average of weights over time
    would then be of directions too, and of little use.

    Args:
        grid, key_grid, num_prefix_tokens: without effect; nothing here depends on places.
        features: number of random features, by default that of the paper, D ln D.
        kernel: "softmax"; "relu" for generalised attention; "none" for no random features, but softmax over channels
            and over tokens.
        equal_lengths: whether all directions have length D ** 0.5 instead of those of normal vectors.
        redraws: whether directions are drawn again as training goes on; `redraw` does it at any time.

    Raises:
        ValueError: `kernel` is another, or `features` less than 1.

    Source: FAVOR+, arXiv 2009.14794; lucidrains/performer-pytorch, which draws again every 1000 calls.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        features: int | None = None,
        kernel: str = "softmax",
        equal_lengths: bool = False,
        redraws: bool = False,
    ):
        super().__init__(dim, num_heads)
        if kernel not in KERNELS:
            raise ValueError(f"kernel={kernel!r} is unknown; valid: {', '.join(KERNELS)}")
        width = dim // num_heads
        features = max(int(width * math.log(width)), 1) if features is None else features
        if features < 1:
            raise ValueError(f"features={features} must be at least 1")
        self.kernel = kernel
        self.equal_lengths = equal_lengths
        if kernel != "none":
            self.register_buffer("projection_matrix", torch.empty(features, width))
            self.redraw()
        self.redraws = redraws and kernel != "none"
        if self.redraws:
            self.register_buffer("evaluated", torch.tensor(False))

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw new directions, where there are any."""
        if self.kernel == "none":
            return
        matrix = self.projection_matrix
        drawn = random_directions(*matrix.shape, self.equal_lengths, matrix.device)
        self.projection_matrix = drawn.to(matrix.dtype)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.redraws and not self.projection_matrix.is_meta:
            if mode and self.evaluated:
                self.redraw()
            self.evaluated.fill_(not mode)
        return self

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        directions = None
        if self.kernel != "none":
            directions = self.projection_matrix.mT.expand(self.num_heads, -1, -1)
        return linear_attention(
            self.split(q),
            self.split(k),
            self.split(v),
            *KERNELS[self.kernel],
            query_parameter=directions,
            key_parameter=directions,
            eps=0.0,
        ).flatten(-2)


def random_directions(
    rows: int, columns: int, equal_lengths: bool = False, device: torch.device | None = None
) -> Tensor:
    """Return random vectors [rows, columns], orthogonal to each other in blocks of `columns`.

    Args:
        equal_lengths: whether all have length columns ** 0.5, or each that of a normal vector drawn for it.
    """
    blocks = torch.randn(-(-rows // columns), columns, columns, device=device)
    directions = torch.linalg.qr(blocks).Q.mT.flatten(0, 1)[:rows]
    if equal_lengths:
        return directions * columns**0.5
    return directions * torch.randn(rows, columns, device=device).norm(dim=1, keepdim=True)
