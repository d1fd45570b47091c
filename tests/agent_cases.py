"""Random calls of agent attention, and agent attention by torch's softmax attention."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.kernels.agent import agent_attention

SCALE = 0.7


@dataclass(frozen=True)
class Case:
    """A call: sizes of the maps of queries, keys and agents, and whether there are biases."""

    grid: tuple[int, ...]
    key_grid: tuple[int, ...]
    agent_grid: tuple[int, ...]
    agent_bias: bool = True
    query_bias: bool = True
    batch: int = 2
    heads: int = 2
    dim: int = 3
    value_dim: int = 4
    seed: int = 0

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return the tensors of the call by name, all asking for gradients."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        tokens, keys, agents = (math.prod(grid) for grid in (self.grid, self.key_grid, self.agent_grid))
        found = {
            "q": draw(self.batch, *self.grid, self.heads, self.dim),
            "k": draw(self.batch, *self.key_grid, self.heads, self.dim),
            "v": draw(self.batch, *self.key_grid, self.heads, self.value_dim),
            "agents": draw(self.batch, *self.agent_grid, self.heads, self.dim),
        }
        if self.agent_bias:
            found["agent_bias"] = draw(self.heads, agents, keys)
        if self.query_bias:
            found["query_bias"] = draw(self.heads, tokens, agents)
        return {name: x.to(dtype).requires_grad_() for name, x in found.items()}

    def ours(self, **tensors: Tensor) -> Tensor:
        """Call the operator."""
        return agent_attention(**tensors, scale=SCALE)

    def truth(self, **tensors: Tensor) -> Tensor:
        """Compute the same by two calls of torch's attention."""
        q, k, v, agents = (tensors[name].flatten(1, -3).transpose(1, 2) for name in ("q", "k", "v", "agents"))
        gathered = F.scaled_dot_product_attention(agents, k, v, attn_mask=tensors.get("agent_bias"), scale=SCALE)
        out = F.scaled_dot_product_attention(q, agents, gathered, attn_mask=tensors.get("query_bias"), scale=SCALE)
        return out.transpose(1, 2).unflatten(1, self.grid)

    def __str__(self) -> str:
        sizes = ("x".join(map(str, grid)) for grid in (self.grid, self.key_grid, self.agent_grid))
        return "-".join((*sizes, *(name for name in ("agent_bias", "query_bias") if getattr(self, name))))
