"""Gated linear attention both ways over a map, at the sizes of ViG-T and of ViG-H-T's stages; it has no marks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ....kernels.gated_linear import gated_linear_attention
from ..problem import Draw, Formulation, HeadsCase, Problem, only_qkv
from .neighborhood import dense

SCANNED = 256
"""Tokens up to which the scan from token to token is put beside ours."""


@dataclass(frozen=True)
class Case(HeadsCase):
    value_channels: int

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.value_channels}"

    def reduced(self) -> Case:
        return super().reduced(side=7, value_channels=8)

    def problem(self, draw: Draw) -> Problem:
        grid, heads = self.grid, self.heads
        inputs = {
            "q": draw(*grid, heads, self.channels),
            "k": draw(*grid, heads, self.channels),
            "v": draw(*grid, heads, self.value_channels),
            # As ViG makes them: at its start a gate halves what is 16 tokens away.
            "log_gate": F.logsigmoid(draw(*grid, heads, self.channels)) / 16,
            "reverse_log_gate": F.logsigmoid(draw(*grid, heads, self.channels)) / 16,
        }
        others = {"dense attention": Formulation(dense, only_qkv, equivalent=False)}
        if self.height * self.width <= SCANNED:
            others["torch, token by token"] = Formulation(scans)
        return Problem(inputs, gated_linear_attention, others)


def scans(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, reverse_log_gate: Tensor) -> Tensor:
    tokens = [x.flatten(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v)]
    forth = scan(*tokens, log_gate.flatten(1, 2).exp())
    back = scan(*(x.flip(1) for x in tokens), reverse_log_gate.flatten(1, 2).flip(1).exp()).flip(1)
    return ((forth + back) / 2).reshape(v.shape)


def scan(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    state = q.new_zeros(*k[:, 0].shape, v.shape[-1])
    outs = []
    for token in range(q.shape[1]):
        state = gate[:, token].unsqueeze(-1) * state + k[:, token].unsqueeze(-1) * v[:, token].unsqueeze(-2)
        outs.append((q[:, token].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outs, 1)


CASES = (
    Case(128, 14, 14, 3, 32, 64),
    Case(128, 56, 56, 3, 16, 32),
    Case(128, 28, 28, 6, 16, 32),
    Case(16, 64, 64, 3, 32, 64),
)
