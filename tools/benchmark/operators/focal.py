"""Focal modulation as FocalNet's whole module: projections, two levels from window 3, the product."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ....layers.focal_modulation import FocalModulation
from ..problem import Draw, Formulation, MapCase, Marks, Problem, in_nchw

WINDOW, LEVELS = 3, 2


class Case(MapCase):
    def __str__(self) -> str:
        return f"{super().__str__()} levels {LEVELS} window {WINDOW}"

    def problem(self, draw: Draw) -> Problem:
        layer = FocalModulation(self.channels, WINDOW, LEVELS).to(draw.device, draw.dtype)
        inputs = {"x": draw(*self.grid, self.channels)}
        # torch.compile takes names of arguments without dots.
        inputs |= {name.replace(".", "_"): parameter.detach() for name, parameter in layer.named_parameters()}
        others = {"torch nchw": Formulation(nchw, in_nchw), "torch nhwc": Formulation(nhwc, compiled=True)}
        return Problem(inputs, partial(module, layer), others)


def module(layer: nn.Module, x: Tensor, **parameters: Tensor) -> Tensor:
    own = {name: parameters[name.replace(".", "_")] for name, _ in layer.named_parameters()}
    return functional_call(layer, own, (x,))


def nhwc(x: Tensor, f_weight: Tensor, f_bias: Tensor, **rest: Tensor) -> Tensor:
    """Linear projections on channels-last maps, as the official module has them."""
    channels = x.shape[-1]
    query, context, gates = F.linear(x, f_weight, f_bias).split((channels, channels, LEVELS + 1), -1)
    return modulate(query, context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2), **rest)


def nchw(x: Tensor, f_weight: Tensor, f_bias: Tensor, **rest: Tensor) -> Tensor:
    """The projection as a 1x1 convolution, as timm has it for NCHW maps."""
    channels = x.shape[-1]
    projected = F.conv2d(x.permute(0, 3, 1, 2), f_weight[:, :, None, None], f_bias)
    query, context, gates = projected.split((channels, channels, LEVELS + 1), 1)
    return modulate(query.permute(0, 2, 3, 1), context, gates, **rest)


def modulate(
    query: Tensor,
    context: Tensor,
    gates: Tensor,
    focal_layers_0_0_weight: Tensor,
    focal_layers_1_0_weight: Tensor,
    h_weight: Tensor,
    h_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Return the module's output from its first projection; `context` and `gates` are NCHW."""
    total = 0.0
    for level, weight in enumerate((focal_layers_0_0_weight, focal_layers_1_0_weight)):
        context = F.gelu(F.conv2d(context, weight, padding=weight.shape[-1] // 2, groups=weight.shape[0]))
        total = total + context * gates[:, level : level + 1]
    total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, LEVELS:]
    modulator = F.conv2d(total, h_weight, h_bias).permute(0, 2, 3, 1)
    return F.linear(query * modulator, proj_weight, proj_bias)


CASES = (
    Case(128, 56, 56, 96, marks=Marks(0.50, 1.9)),
    Case(128, 28, 28, 192, marks=Marks(0.28, 1.1)),
    Case(128, 14, 14, 384, marks=Marks(0.17, 0.60)),
)
