"""Focal modulation as its definition reads, from the definition of depthwise convolution.

Runs on any device and dtype, and accumulates in at least float32. This file is the specification that the other
backends are tested against.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depthwise import reference as depthwise_reference
from ..depthwise.reference import unsupported, widen
from .saved import Saved

__all__ = ["backward", "forward", "unsupported"]

UNDILATED = (1, 1)


def _point(modulator: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(modulator, weight.to(modulator.dtype), None if bias is None else bias.to(modulator.dtype))


def forward(
    projected: Tensor,
    weights: Sequence[Tensor],
    point_weight: Tensor,
    point_bias: Tensor | None,
    normalize: bool,
    keeps: bool,
    depthwise: ModuleType = depthwise_reference,
) -> tuple[Tensor, Saved | None]:
    """Return the output [B, H, W, C] and, with `keeps`, what the backward pass needs.

    Args:
        depthwise: the backend of depthwise convolution to use.
    """
    query, z, *gate = _parts(projected, weights, point_weight)
    dtype, modulator = projected.dtype, z.new_zeros(z.shape)
    shape = (len(z), len(weights), *z.shape[1:]) if keeps else (0,)
    contexts, convolved = (z.new_empty(shape, dtype=dtype) for _ in range(2))
    for level, weight in enumerate(weights):
        z = depthwise.forward(z, weight, None, UNDILATED)
        if keeps:
            convolved[:, level] = z
        z = torch.ops.aten.gelu_(z)
        if keeps:
            contexts[:, level] = z
        modulator.addcmul_(z, gate[level])
    mean = z.mean((1, 2))
    modulator.addcmul_(F.gelu(mean)[:, None, None], gate[-1])
    if normalize:
        modulator /= len(gate)
    out = (query * _point(modulator, point_weight, point_bias)).to(dtype)
    return out, Saved(modulator.to(dtype), contexts, convolved, mean) if keeps else None


def _parts(projected: Tensor, weights: Sequence[Tensor], point_weight: Tensor) -> tuple[Tensor, ...]:
    """Return query and context, [B, H, W, C], and each gate, [B, H, W, 1], in the dtype to compute in."""
    channels, gates = len(point_weight), len(weights) + 1
    used = projected[..., : 2 * channels + gates]
    return tuple(widen(part) for part in used.split((channels, channels, *(1 for _ in range(gates))), -1))


def backward(
    dout: Tensor,
    saved: Saved,
    projected: Tensor,
    weights: Sequence[Tensor],
    point_weight: Tensor,
    point_bias: Tensor | None,
    normalize: bool,
    depthwise: ModuleType = depthwise_reference,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None]:
    """Return the gradients of projected, weights, point_weight and point_bias, given that of the output."""
    query, context, *gate = _parts(projected, weights, point_weight)
    dout, modulator, mean = widen(dout), widen(saved.modulator), saved.mean[:, None, None]
    z = [context, *widen(saved.contexts).unbind(1)]
    dquery = dout * _point(modulator, point_weight, point_bias)
    dpoint = dout * query
    dpoint_weight = (dpoint.flatten(0, 2).T @ modulator.flatten(0, 2)).to(point_weight.dtype)
    dpoint_bias = None if point_bias is None else dpoint.sum((0, 1, 2)).to(point_bias.dtype)
    dmodulator = dpoint @ point_weight.to(dpoint.dtype)
    if normalize:
        dmodulator = dmodulator / len(gate)
    dgates = [(dmodulator * x).sum(-1, keepdim=True) for x in (*z[1:], F.gelu(mean))]
    dmean = torch.ops.aten.gelu_backward((dmodulator * gate[-1]).sum((1, 2), keepdim=True), mean)
    dz = (dmean / (context.shape[1] * context.shape[2])).expand_as(context)
    dweights = []
    for level in reversed(range(len(weights))):
        dz = torch.addcmul(dz, dmodulator, gate[level])
        dconvolved = torch.ops.aten.gelu_backward(dz, widen(saved.convolved[:, level]))
        dz, dweight, _ = depthwise.backward(dconvolved, z[level], weights[level], None, UNDILATED)
        dweights.insert(0, dweight)
    unread = projected.shape[-1] - 2 * len(point_weight) - len(gate)
    dprojected = F.pad(torch.cat([dquery, dz, *dgates], -1), (0, unread)).to(projected.dtype)
    return dprojected, dweights, dpoint_weight, dpoint_bias
