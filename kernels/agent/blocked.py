"""Agent attention whose queries read the agents some at a time, so that what lies between stays in a cache.

Made for the many tokens of large maps on CPUs. The gradient is the reference's.
"""

import torch
from torch import Tensor

from ..precision import narrow
from .reference import gather, heads_first, read_weights

BLOCK = 1 << 16
"""Entries of a block of queries of all samples: 256 KiB of float32."""


def unsupported(direction: str, *problem: Tensor | None) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if direction == "backward":
        return "it has no gradient of its own"
    device = problem[0].device.type
    return None if device == "cpu" else f"it is for CPUs, the tensors are on {device}"


def forward(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, agent_bias: Tensor | None, query_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output [B, N, heads, E] in the dtype of v, what the agents gather and their log-sum-exp."""
    keys, values, means = (heads_first(x) for x in (k, v, agents))
    gathered, lse = gather(means, keys, values, agent_bias, scale)
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    length = max(1, BLOCK // max(1, q[:, 0].numel()))
    for start in range(0, q.shape[1], length):
        place = slice(start, start + length)
        bias = None if query_bias is None else query_bias[:, place]
        read = read_weights(means, heads_first(q[:, place]), bias, scale)
        out[:, place] = narrow(torch.matmul(read.mT, gathered).transpose(1, 2), out.dtype)
    return out, gathered, lse
