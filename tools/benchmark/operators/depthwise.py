"""Depthwise convolution: VAN's two, UniRepLKNet's 13x13, RepLKNet's 31x31."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ....kernels.depthwise import depthwise_conv2d
from ..problem import Draw, Marks, Problem, both_layouts, smaller


class Case(NamedTuple):
    batch: int
    height: int
    width: int
    channels: int
    kernel: int
    dilation: int
    marks: Marks | None = None

    def __str__(self) -> str:
        size = f"{self.batch}x{self.height}x{self.width} channels {self.channels}"
        return f"{size} kernel {self.kernel} dilation {self.dilation}"

    def reduced(self) -> Case:
        size = smaller(self.batch, self.height, self.width)
        return Case(*size, min(self.channels, 8), self.kernel, self.dilation)

    def problem(self, draw: Draw) -> Problem:
        inputs = {
            "x": draw(self.batch, self.height, self.width, self.channels),
            "weight": draw.weight(self.channels, 1, self.kernel, self.kernel),
            "bias": draw(self.channels),
        }
        ours = partial(depthwise_conv2d, dilation=self.dilation)
        return Problem(inputs, ours, both_layouts(partial(plain, dilation=self.dilation)))


def plain(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    padding = weight.shape[-1] // 2 * dilation
    u = x.permute(0, 3, 1, 2)
    out = F.conv2d(u, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])
    return out.permute(0, 2, 3, 1)


CASES = (
    Case(128, 56, 56, 64, 5, 1),
    Case(128, 56, 56, 64, 7, 3),
    Case(128, 14, 14, 320, 5, 1),
    Case(128, 14, 14, 320, 7, 3),
    Case(128, 28, 28, 160, 13, 1),
    Case(128, 14, 14, 320, 13, 1),
    Case(32, 56, 56, 128, 31, 1),
    Case(32, 28, 28, 256, 31, 1),
)
