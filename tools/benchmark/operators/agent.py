"""Agent attention with both biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ....kernels.agent import agent_attention
from ..problem import Draw, Formulation, HeadsCase, Marks, Problem


@dataclass(frozen=True)
class Case(HeadsCase):
    agents: int

    def __str__(self) -> str:
        return f"{super().__str__()} agents {self.agents}"

    def problem(self, draw: Draw) -> Problem:
        tokens = self.height * self.width
        inputs = draw.packed(self)
        inputs["agents"] = draw(self.batch, self.agents, self.heads, self.channels)
        inputs["agent_bias"] = draw(self.heads, self.agents, tokens)
        inputs["query_bias"] = draw(self.heads, tokens, self.agents)
        others = {"torch SDPA": Formulation(sdpa, compiled=True), "torch": Formulation(softmax)}
        return Problem(inputs, agent_attention, others)


def sdpa(q: Tensor, k: Tensor, v: Tensor, agents: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
    queries, keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    means = agents.transpose(1, 2)
    gathered = F.scaled_dot_product_attention(means, keys, values, agent_bias[None])
    out = F.scaled_dot_product_attention(queries, means, gathered, query_bias[None])
    return out.transpose(1, 2).reshape(q.shape)


def softmax(q: Tensor, k: Tensor, v: Tensor, agents: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
    queries, keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    means = agents.transpose(1, 2) * q.shape[-1] ** -0.5
    gathered = (means @ keys.mT + agent_bias).softmax(-1) @ values
    out = (queries @ means.mT + query_bias).softmax(-1) @ gathered
    return out.transpose(1, 2).reshape(q.shape)


CASES = (
    Case(128, 56, 56, 3, 32, 9, marks=Marks(0.25, 0.75)),
    Case(16, 64, 64, 6, 64, 49, marks=Marks(0.12, 0.40)),
)
