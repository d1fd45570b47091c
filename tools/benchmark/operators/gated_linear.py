"""Gated linear attention both ways over a map, at the sizes of ViG-T and of ViG-H-T's stages; it has no marks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ....kernels.gated_linear import gated_linear_attention
from ..problem import Draw, Formulation, Marks, Problem, only_qkv, smaller
from .neighborhood import dense

SCANNED = 256
"""Tokens up to which the scan from token to token is put beside ours."""


class Case(NamedTuple):
    batch: int
    height: int
    width: int
    heads: int
    key_channels: int
    value_channels: int
    marks: Marks | None = None

    def __str__(self) -> str:
        size = f"{self.batch}x{self.height}x{self.width} heads {self.heads}"
        return f"{size} dim {self.key_channels}, {self.value_channels}"

    def reduced(self) -> Case:
        size = smaller(self.batch, self.height, self.width, least=7)
        return Case(*size, min(self.heads, 2), min(self.key_channels, 8), min(self.value_channels, 8))

    def problem(self, draw: Draw) -> Problem:
        grid, heads = (self.batch, self.height, self.width), self.heads
        inputs = {
            "q": draw(*grid, heads, self.key_channels),
            "k": draw(*grid, heads, self.key_channels),
            "v": draw(*grid, heads, self.value_channels),
            # As ViG makes them: at its start a gate halves what is 16 tokens away.
            "log_gate": F.logsigmoid(draw(*grid, heads, self.key_channels)) / 16,
            "reverse_log_gate": F.logsigmoid(draw(*grid, heads, self.key_channels)) / 16,
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
