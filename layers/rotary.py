"""Attention whose queries and keys are turned by angles that grow with their rows and columns."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed
from torch import Tensor

from ..kernels import autocast
from .attention_core import AttentionCore, Layout


class RotaryCore(AttentionCore):
    """Base of cores with rotary positions, without parameters; its buffer `frequency` [D / 2] is what files say.

    The first half of a head's channels is turned by the row, the second by the column; neighbouring channels are a pair
    and share a frequency. Rows and columns count from 0 without rescaling; those of a reduced map of keys lie amid the
    queries' that they stand for. Prefix tokens are not turned.

    Args:
        grid, key_grid, num_prefix_tokens: taken as every core takes them; positions are made anew for each map.

    Raises:
        ValueError: the channels of a head are no multiple of 4.

    Source: the code that RALA, MALA and NaLaFormer share: qhfan/RALA, qhfan/MALA, ZacharyMeng/NaLaFormer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
    ):
        super().__init__(dim, num_heads)
        if dim // num_heads % 4:
            raise ValueError(f"dim={dim} must be a multiple of 4 * num_heads, num_heads={num_heads}")
        # Both ends are frequencies, 1 and 1e-4, unlike in most rotary codes.
        exponents = torch.linspace(0, 1, dim // num_heads // 4).repeat_interleave(2)
        self.register_buffer("frequency", 10000.0**-exponents)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        precise = self.frequency
        super()._apply(fn, recurse)
        if self.frequency.dtype in (torch.float16, torch.bfloat16):
            # Far from the origin angles would be off by whole turns.
            self.frequency = precise.to(self.frequency.device)
        return self

    def turns(self, like: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of queries and of keys, [2, N, D] each, in at least float32."""
        frequency = self.frequency.to(torch.promote_types(like.dtype, torch.float32))
        queries, keys = coordinates(frequency, layout)
        queries = _table(queries, frequency)
        return queries, _table(keys, frequency) if layout.reduced else queries


def coordinates(like: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the rows and columns [2, N] of queries and of keys, those of prefix tokens 0, in the dtype of `like`.

    They count from 0; those of a reduced map of keys lie amid the queries' that they stand for.
    """
    queries = [torch.arange(extent, dtype=like.dtype, device=like.device) for extent in layout.grid]
    found = _pairs(queries, layout.num_prefix_tokens)
    if not layout.reduced:
        return found, found
    keys = [
        (torch.arange(extent, dtype=like.dtype, device=like.device) + 0.5) * (full / extent) - 0.5
        for extent, full in zip(layout.key_grid, layout.grid, strict=True)
    ]
    return found, _pairs(keys, layout.num_prefix_tokens)


def _pairs(places: list[Tensor], num_prefix_tokens: int) -> Tensor:
    """Return the row and the column of every token of a map, [2, N], behind prefix tokens at 0."""
    rows, columns = places
    shape = (rows.shape[0], columns.shape[0])
    pairs = torch.stack((rows[:, None].expand(shape), columns[None].expand(shape)))
    return F.pad(pairs.flatten(1), (num_prefix_tokens, 0))


def _table(places: Tensor, frequency: Tensor) -> Tensor:
    """Return cosines and sines [2, N, D] of tokens at the rows and columns `places` [2, N]."""
    rows, columns = (place.outer(frequency) for place in places)
    angles = torch.cat((rows, columns), -1)
    return torch.stack((angles.cos(), angles.sin()))


class RotarySoftmaxCore(RotaryCore):
    """Multi-head softmax attention of turned queries and keys, scale D ** -0.5."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        turned = []
        for x, (cosine, sine) in zip((q, k), self.turns(q, layout), strict=True):
            x = self.split(x).transpose(1, 2)
            with autocast.off(x):
                turned.append(apply_rot_embed(x, sine, cosine).to(x.dtype))
        out = F.scaled_dot_product_attention(*turned, self.split(v).transpose(1, 2))
        return out.transpose(1, 2).flatten(-2)
