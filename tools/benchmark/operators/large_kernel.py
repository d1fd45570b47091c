"""Large kernel attention of VAN: 5x5, 7x7 with dilation 3, 1x1, biases and the gate."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ....kernels.large_kernel import large_kernel_attention
from ..problem import Draw, MapCase, Marks, Problem, both_layouts


class Case(MapCase):
    def problem(self, draw: Draw) -> Problem:
        c = self.channels
        inputs = {
            "x": draw(*self.grid, c),
            "local_weight": draw.weight(c, 1, 5, 5),
            "spatial_weight": draw.weight(c, 1, 7, 7),
            "point_weight": draw.weight(c, c),
            "local_bias": draw(c),
            "spatial_bias": draw(c),
            "point_bias": draw(c),
        }
        return Problem(inputs, large_kernel_attention, both_layouts(plain))


def plain(
    x: Tensor,
    local_weight: Tensor,
    spatial_weight: Tensor,
    point_weight: Tensor,
    local_bias: Tensor,
    spatial_bias: Tensor,
    point_bias: Tensor,
) -> Tensor:
    u = x.permute(0, 3, 1, 2)
    channels = u.shape[1]
    gate = F.conv2d(u, local_weight, local_bias, padding=2, groups=channels)
    gate = F.conv2d(gate, spatial_weight, spatial_bias, padding=9, dilation=3, groups=channels)
    gate = F.conv2d(gate, point_weight[:, :, None, None], point_bias)
    return (u * gate).permute(0, 2, 3, 1)


CASES = (
    Case(128, 56, 56, 64, marks=Marks(0.25, 1.2)),
    Case(128, 28, 28, 128, marks=Marks(0.13, 0.65)),
    Case(128, 14, 14, 320, marks=Marks(0.09, 0.45)),
    Case(128, 7, 7, 512, marks=Marks(0.05, 0.20)),
    Case(2, 256, 256, 64, marks=Marks(0.09, 0.45)),
)
