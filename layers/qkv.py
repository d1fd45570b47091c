"""The projections around an attention core: cores by name, and the two shells that make token mixers of them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from .agent import AgentCore
from .attention_core import AttentionCore
from .cosine import CosineCore
from .efficient import EfficientCore
from .focused_linear import FocusedLinearCore
from .hedgehog import HedgehogCore
from .inline import InLineCore
from .l2 import L2Core
from .lightnet import LightNetCore
from .mala import MalaCore
from .nala import NalaCore
from .performer import PerformerCore
from .plain import is_plain
from .rala import RalaCore
from .rotary import RotarySoftmaxCore
from .sigmoid import SigmoidCore
from .softmax import SoftmaxCore
from .transnormer import TransNormerCore

CORES: dict[str, type[AttentionCore]] = {
    "agent": AgentCore,
    "cosine": CosineCore,
    "efficient": EfficientCore,
    "focused": FocusedLinearCore,
    "hedgehog": HedgehogCore,
    "inline": InLineCore,
    "l2": L2Core,
    "lightnet": LightNetCore,
    "mala": MalaCore,
    "nala": NalaCore,
    "performer": PerformerCore,
    "rala": RalaCore,
    "rotary_softmax": RotarySoftmaxCore,
    "sigmoid": SigmoidCore,
    "softmax": SoftmaxCore,
    "transnormer": TransNormerCore,
}


def build_core(
    name: str,
    dim: int,
    num_heads: int,
    grid: int | tuple[int, int] = 14,
    key_grid: int | tuple[int, int] | None = None,
    num_prefix_tokens: int = 0,
    **options: Any,
) -> AttentionCore:
    """Build the attention core called `name`; see `AttentionCore` for how it is called.

    Args:
        name: one of `CORES`.
        grid, key_grid: map size (H, W) of queries and of keys that tables are made for; `key_grid` defaults to `grid`.
        num_prefix_tokens: tokens before the map's, such as a class token.
        options: the core's own.

    Raises:
        ValueError: no core has that name.
    """
    if name not in CORES:
        raise ValueError(f"core {name!r} is unknown; there are {', '.join(sorted(CORES))}")
    return CORES[name](dim, num_heads, grid, key_grid, num_prefix_tokens, **options)


LARGE = 1 << 25
"""Bytes beyond which a C library gives memory back to the system as soon as it is free."""


def project(linear: nn.Module, tokens: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
    """Return the projection of tokens [B, N, C] in parts of those widths, [B, N, width] each.

    A large one is made part by part: on a CPU, fetching new memory for all of it takes longer than the product itself.
    Only where `linear` is what it looks like, and not hooked or replaced; and not in a graph, which is for any batch.
    """
    plain = is_plain(linear) and not torch.compiler.is_compiling()
    if not plain or sum(widths) * tokens[..., 0].numel() * tokens.element_size() <= LARGE:
        return linear(tokens).split(widths, -1)
    biases = [None] * len(widths) if linear.bias is None else linear.bias.split(widths)
    weights = linear.weight.split(widths)
    return [F.linear(tokens, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


class QKVMixer(nn.Module):
    """Token mixer of one projection to queries, keys and values, a core, and an output projection.

    Called with a channels-last map [B, H, W, C] it returns one; called with tokens [B, N, C] and the size `grid` (H, W)
    of their map, the first N - H * W of them prefix tokens, it returns tokens.

    Args:
        core: the attention, for `dim` channels.
        qkv_bias: whether the first projection has a bias.
    """

    def __init__(self, core: AttentionCore, qkv_bias: bool = True, proj_drop: float = 0.0):
        super().__init__()
        self.widths = [core.key_dim, core.key_dim, core.value_dim]
        self.qkv = nn.Linear(core.dim, sum(self.widths), bias=qkv_bias)
        self.core = core
        self.proj = nn.Linear(core.value_dim, core.dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample the core's tables for maps of size `grid` (H, W)."""
        self.core.set_grid(grid)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        tokens, grid = (x.flatten(1, 2), x.shape[1:3]) if grid is None else (x, grid)
        q, k, v = project(self.qkv, tokens, self.widths)
        mean = tokens.mean(1) if self.core.needs_mean else None
        out = self.core(q, k, v, grid, num_prefix_tokens=tokens.shape[1] - grid[0] * grid[1], mean=mean)
        return self.proj_drop(self.proj(out)).view(x.shape)


class QKVReducedMixer(nn.Module):
    """Token mixer on a channels-last map, [B, H, W, C] -> [B, H, W, C], whose keys and values may be of a smaller map.

    Queries have a projection of their own. The map behind keys and values is reduced by a convolution of extent and
    stride `sr_ratio` and a norm; rows and columns left over are dropped, and a map smaller than the kernel is
    zero-padded. With `pool` it is averaged to `pool` x `pool` bins instead, then projected, normed and passed through
    GELU.

    Args:
        core: the attention, for `dim` channels.

    Source: spatial reduction of PVT, arXiv 2102.12122, and PVTv2, arXiv 2106.13797 (pooling).
    """

    def __init__(
        self,
        core: AttentionCore,
        sr_ratio: int = 1,
        pool: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        _check_ratio(sr_ratio)
        dim = core.dim
        self.sr_ratio = sr_ratio
        self.pool = pool
        self.widths = [core.key_dim, core.value_dim]
        self.q = nn.Linear(dim, core.key_dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, sum(self.widths), bias=qkv_bias)
        if pool or sr_ratio > 1:
            extent = 1 if pool else sr_ratio
            self.sr = nn.Conv2d(dim, dim, extent, stride=extent)
            self.norm = nn.LayerNorm(dim)
        self.core = core
        self.proj = nn.Linear(core.value_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample the core's tables for maps of size `grid` (H, W)."""
        self.core.set_grid(grid, _reduced(grid, self.sr_ratio, self.pool))

    def _reduce(self, x: Tensor) -> Tensor:
        """Return the map of keys and values."""
        if self.pool:
            x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.pool)
            return F.gelu(self.norm(self.sr(x).permute(0, 2, 3, 1)))
        if self.sr_ratio == 1:
            return x
        rows, columns = (max(self.sr_ratio - size, 0) for size in x.shape[1:3])
        x = F.pad(x, (0, 0, 0, columns, 0, rows)).permute(0, 3, 1, 2)
        return self.norm(self.sr(x).permute(0, 2, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        reduced = self._reduce(x)
        q = self.q(x).flatten(1, 2)
        k, v = project(self.kv, reduced.flatten(1, 2), self.widths)
        mean = x.mean((1, 2)) if self.core.needs_mean else None
        out = self.core(q, k, v, x.shape[1:3], reduced.shape[1:3], mean=mean)
        return self.proj_drop(self.proj(out)).view(x.shape)


def _check_ratio(sr_ratio: int) -> None:
    if sr_ratio < 1:
        raise ValueError(f"sr_ratio={sr_ratio} must be at least 1")


def _reduced(grid: tuple[int, int], sr_ratio: int, pool: int | None) -> tuple[int, int]:
    """Return the size of the keys' map."""
    _check_ratio(sr_ratio)
    return to_2tuple(pool) if pool else tuple(max(size // sr_ratio, 1) for size in grid)


def build_qkv_mixer(
    core: str,
    dim: int,
    num_heads: int,
    grid: int | tuple[int, int] = 14,
    sr_ratio: int | None = None,
    pool: int | None = None,
    qkv_bias: bool = True,
    proj_drop: float = 0.0,
    **options: Any,
) -> nn.Module:
    """Build a token mixer around the core of that name.

    Args:
        grid: map size (H, W) that the core's tables are made for.
        sr_ratio, pool: spatial reduction of keys and values; where one is given, even 1, the shell is
            `QKVReducedMixer`, else `QKVMixer`.
        options: the core's own.
    """
    if sr_ratio is None and pool is None:
        return QKVMixer(build_core(core, dim, num_heads, grid, **options), qkv_bias, proj_drop)
    sr_ratio = 1 if sr_ratio is None else sr_ratio
    attention = build_core(core, dim, num_heads, grid, _reduced(to_2tuple(grid), sr_ratio, pool), **options)
    return QKVReducedMixer(attention, sr_ratio, pool, qkv_bias, proj_drop)
