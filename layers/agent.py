"""Agent attention: the core of Agent Transformer."""

import math

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from ..kernels.agent import agent_attention
from .attention_core import AttentionCore, Layout, add_local, as_map, resample
from .depthwise import DepthwiseConv2d
from .position import pool_map, resize_map

_LOCAL_TABLE = 7


class AgentCore(AttentionCore):
    """Attention through pooled agent tokens, with biases of their positions, and a depthwise convolution of the values.

    Agents are the averages of the queries' map over `agent_grid` bins. Two biases, of agents to keys and of queries to
    agents, are each the sum of a 7x7 table over the map, a table over its rows and one over its columns; with prefix
    tokens a fourth one is theirs. All are resampled bilinearly to the size of the map, and to `agent_grid` where it is
    not the square of `agent_num`. Values of a reduced map are resized bilinearly before the convolution. Prefix tokens
    are queries and keys, but neither pooled nor convolved.

    Args:
        grid, key_grid: map size (H, W) of queries and of keys that the tables are made for.
        num_prefix_tokens: how many prefix tokens have biases.
        agent_num: number of agents the tables are made for, a square.
        agent_grid: rows and columns of agents; default the square of `agent_num`. Detection and segmentation backbones
            have more than classifiers.
        local: whether the values are convolved; CSwin hosts bring a convolution of their own.

    Raises:
        ValueError: `agent_num` is not a square.

    Source: arXiv 2312.08874; LeapLabTHU/Agent-Attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, int] = 14,
        key_grid: int | tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        agent_num: int = 49,
        agent_grid: int | tuple[int, int] | None = None,
        local: bool = True,
    ):
        super().__init__(dim, num_heads)
        side = math.isqrt(max(agent_num, 0))
        if side < 1 or side**2 != agent_num:
            raise ValueError(f"agent_num={agent_num} must be a square number of at least 1")
        self.table_grid = (side, side)
        self.agent_grid = self.table_grid if agent_grid is None else to_2tuple(agent_grid)
        height, width = to_2tuple(grid)
        key_height, key_width = to_2tuple(grid if key_grid is None else key_grid)
        shapes = {
            "an_bias": (num_heads, agent_num, _LOCAL_TABLE, _LOCAL_TABLE),
            "na_bias": (num_heads, agent_num, _LOCAL_TABLE, _LOCAL_TABLE),
            "ah_bias": (1, num_heads, agent_num, key_height, 1),
            "aw_bias": (1, num_heads, agent_num, 1, key_width),
            "ha_bias": (1, num_heads, height, 1, agent_num),
            "wa_bias": (1, num_heads, 1, width, agent_num),
        }
        if num_prefix_tokens:
            shapes["ac_bias"] = (1, num_heads, agent_num, num_prefix_tokens)
            shapes["ca_bias"] = (1, num_heads, num_prefix_tokens, agent_num)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(trunc_normal_(torch.empty(shape), std=0.02)))
        self.dwc = DepthwiseConv2d(dim) if local else None

    def resized(self, name: str, table: Tensor) -> Tensor:
        own = getattr(self, name, None)
        if name not in ("ah_bias", "aw_bias", "ha_bias", "wa_bias") or own.shape == table.shape:
            return table
        size = own.shape[3:] if name.startswith("a") else own.shape[2:4]
        return _to_tables(_to_maps(name, table, size), name)

    def set_grid(self, grid: tuple[int, int], key_grid: tuple[int, int] | None = None) -> None:
        key_grid = grid if key_grid is None else key_grid
        sizes = {
            "ah_bias": (key_grid[0], 1),
            "aw_bias": (1, key_grid[1]),
            "ha_bias": (grid[0], 1),
            "wa_bias": (1, grid[1]),
        }
        with torch.no_grad():
            for name, size in sizes.items():
                table = _to_tables(_to_maps(name, getattr(self, name), size), name)
                self.register_parameter(name, nn.Parameter(table.clone()))

    def _bias(self, names: tuple[str, str, str], prefix: Tensor | None, grid: tuple[int, int], prefixed: int) -> Tensor:
        """Return the bias of agents and tokens, [heads, agents, prefix + H * W]."""
        local, rows, columns = names
        bias = resize_map(getattr(self, local), grid)
        bias = bias + _to_maps(rows, getattr(self, rows), (grid[0], 1))
        bias = (bias + _to_maps(columns, getattr(self, columns), (1, grid[1]))).flatten(-2)
        if prefixed:
            bias = F.pad(bias, (prefixed, 0)) if prefix is None else torch.cat((prefix, bias), -1)
        if self.agent_grid != self.table_grid:
            bias = bias.unflatten(1, self.table_grid).permute(0, 3, 1, 2)
            bias = resize_map(bias, self.agent_grid).permute(0, 2, 3, 1).flatten(1, 2)
        return bias

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        grid, key_grid, prefixed, _ = layout
        prefix = (None, None)
        if prefixed and hasattr(self, "ac_bias"):
            prefix = (self.ac_bias[0], self.ca_bias[0].mT)
        agents = pool_map(q[:, prefixed:].unflatten(1, grid), self.agent_grid).flatten(1, 2)
        agent_bias = self._bias(("an_bias", "ah_bias", "aw_bias"), prefix[0], key_grid, prefixed)
        query_bias = self._bias(("na_bias", "ha_bias", "wa_bias"), prefix[1], grid, prefixed)
        out = agent_attention(
            self.split(q), self.split(k), self.split(v), self.split(agents), agent_bias, query_bias.mT
        ).flatten(-2)
        if self.dwc is None:
            return out
        values = as_map(v[:, prefixed:], key_grid)
        if layout.reduced:
            values = resample(values, grid)
        return add_local(out, self.dwc, values, prefixed)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, agent_grid={self.agent_grid}"


def _to_maps(name: str, table: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a table over rows or columns as maps [heads, agents, *size], resampled where its length differs."""
    maps = table[0] if name.startswith("a") else table[0].permute(0, 3, 1, 2)
    return resize_map(maps, size)


def _to_tables(maps: Tensor, name: str) -> Tensor:
    """Undo `_to_maps`."""
    return maps[None] if name.startswith("a") else maps.permute(0, 2, 3, 1)[None]
