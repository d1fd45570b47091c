"""Depthwise convolution: VAN's two, the 3x3 with GELU of its MLPs, UniRepLKNet's 13x13, RepLKNet's 31x31."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ....kernels.depthwise import depthwise_conv2d
from ..problem import Draw, MapCase, Problem, both_layouts


@dataclass(frozen=True)
class Case(MapCase):
    kernel: int
    dilation: int
    activation: str | None = None

    def __str__(self) -> str:
        activation = f" {self.activation}" if self.activation else ""
        return f"{super().__str__()} kernel {self.kernel} dilation {self.dilation}{activation}"

    def problem(self, draw: Draw) -> Problem:
        inputs = {
            "x": draw(*self.grid, self.channels),
            "weight": draw.weight(self.channels, 1, self.kernel, self.kernel),
            "bias": draw(self.channels),
        }
        options = {"dilation": self.dilation, "activation": self.activation}
        return Problem(inputs, partial(depthwise_conv2d, **options), both_layouts(partial(plain, **options)))


def plain(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, activation: str | None) -> Tensor:
    padding = weight.shape[-1] // 2 * dilation
    u = x.permute(0, 3, 1, 2)
    out = F.conv2d(u, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])
    out = out.permute(0, 2, 3, 1)
    return F.gelu(out) if activation else out


CASES = (
    Case(128, 56, 56, 64, 5, 1),
    Case(128, 56, 56, 64, 7, 3),
    Case(128, 14, 14, 320, 5, 1),
    Case(128, 14, 14, 320, 7, 3),
    Case(128, 56, 56, 512, 3, 1, "gelu"),
    Case(128, 14, 14, 1280, 3, 1, "gelu"),
    Case(128, 28, 28, 160, 13, 1),
    Case(128, 14, 14, 320, 13, 1),
    Case(32, 56, 56, 128, 31, 1),
    Case(32, 28, 28, 256, 31, 1),
)
