"""What lies between the projections of an attention layer: base of the cores that hosts carry."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .position import resize_map


class Layout(NamedTuple):
    """Where tokens lie: the sizes (H, W) of the map of queries and of that of keys, and the tokens before them.

    With them goes the mean [B, C] of the layer's input over its tokens, or None.
    """

    grid: tuple[int, int]
    key_grid: tuple[int, int]
    num_prefix_tokens: int
    mean: Tensor | None

    @property
    def reduced(self) -> bool:
        """Whether keys lie on another map than queries."""
        return self.key_grid != self.grid


class AttentionCore(nn.Module):
    """Attention of projected tokens, without projections of its own, so that any host can carry it.

    A core is called `core(q, k, v, grid, key_grid=None, num_prefix_tokens=0, mean=None) -> [B, N, C]`:

    - q, k, v are tokens [B, N, C], prefix tokens such as a class token first, then a map's tokens row-major; heads are
      contiguous groups of channels;
    - `grid` is the map's size (H, W), `key_grid` that of keys and values where it differs; any size is legal, whatever
      sizes the core's tables were made for;
    - `mean` [B, C] is the mean of the layer's input over its tokens, which cores with `needs_mean` read.

    Args:
        dim: channels C, a multiple of `num_heads`.
        key_dim, value_dim: channels of queries and keys, and of values, for cores that have others; multiples too.

    Raises:
        ValueError: one of them is no multiple of `num_heads`.
    """

    needs_mean = False

    attend: Callable[[Tensor, Tensor, Tensor, Layout], Tensor]
    """What a core makes of q, k and v, [B, N, C]."""

    def __init__(self, dim: int, num_heads: int, key_dim: int | None = None, value_dim: int | None = None):
        super().__init__()
        self.dim = dim
        self.key_dim = dim if key_dim is None else key_dim
        self.value_dim = dim if value_dim is None else value_dim
        self.num_heads = num_heads
        for name in ("dim", "key_dim", "value_dim"):
            width = getattr(self, name)
            if num_heads < 1 or width < 1 or width % num_heads:
                raise ValueError(f"{name}={width} must be a multiple of num_heads={num_heads}")

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: tuple[int, int],
        key_grid: tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        mean: Tensor | None = None,
    ) -> Tensor:
        layout = Layout(tuple(grid), tuple(grid if key_grid is None else key_grid), num_prefix_tokens, mean)
        return self.attend(q, k, v, layout)

    def split(self, x: Tensor) -> Tensor:
        """View tokens [B, N, C] as [B, N, heads, D]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def resized(self, name: str, table: Tensor) -> Tensor:
        """Return a checkpoint's parameter `name`, made for another size, in the shape of this core's."""
        return table

    def set_grid(self, grid: tuple[int, int], key_grid: tuple[int, int] | None = None) -> None:
        """Resample the tables for maps of size `grid` (H, W), with keys on `key_grid`."""

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """View the tokens of a map, [B, H * W, C], as [B, H, W, C]."""
    return tokens.unflatten(1, grid)


def resample(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a map [B, H, W, C] to [B, *size, C]."""
    return resize_map(values.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


def add_map(tokens: Tensor, local: Tensor, num_prefix_tokens: int) -> Tensor:
    """Add a map [B, H, W, C] to the tokens behind the prefix; in inference mode, in the memory of these tokens."""
    local = local.flatten(1, 2)
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        tokens[:, num_prefix_tokens:] += local
        return tokens
    return tokens + nn.functional.pad(local, (0, 0, num_prefix_tokens, 0)) if num_prefix_tokens else tokens + local


def add_local(tokens: Tensor, convolve: Callable[..., Tensor], values: Tensor, num_prefix_tokens: int) -> Tensor:
    """Add a depthwise convolution of a map [B, H, W, C] to the tokens behind the prefix.

    Args:
        convolve: the convolution. Tokens without a prefix are a map, which it is given as `add`, for it to add.
    """
    if num_prefix_tokens:
        return add_map(tokens, convolve(values), num_prefix_tokens)
    return convolve(values, add=as_map(tokens, values.shape[1:3])).flatten(1, 2)
