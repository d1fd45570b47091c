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

__all__ = ["backward", "forward", "unsupported"]

UNDILATED = (1, 1)


def forward(
    context: Tensor,
    gates: Tensor,
    weights: Sequence[Tensor],
    normalize: bool,
    depthwise: ModuleType = depthwise_reference,
) -> Tensor:
    """Return the modulator [B, H, W, C].

    Args:
        depthwise: the backend of depthwise convolution to use.
    """
    z, gate = widen(context), widen(gates).split(1, -1)
    out = z.new_zeros(z.shape)
    for level, weight in enumerate(weights):
        z = torch.ops.aten.gelu_(depthwise.forward(z, weight, None, UNDILATED))
        out.addcmul_(z, gate[level])
    out.addcmul_(F.gelu(z.mean((1, 2), keepdim=True)), gate[-1])
    if normalize:
        out /= len(gate)
    return out.to(context.dtype)


def backward(
    dout: Tensor,
    context: Tensor,
    gates: Tensor,
    weights: Sequence[Tensor],
    normalize: bool,
    depthwise: ModuleType = depthwise_reference,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the gradients of context, gates and weights, given that of the output; contexts are computed again."""
    dout, gate = widen(dout), widen(gates).split(1, -1)
    if normalize:
        dout = dout / len(gate)
    z, convolved = [widen(context)], []
    for weight in weights:
        convolved.append(depthwise.forward(z[-1], weight, None, UNDILATED))
        z.append(F.gelu(convolved[-1]))
    mean = z[-1].mean((1, 2), keepdim=True)
    dgates = [(dout * x).sum(-1, keepdim=True) for x in (*z[1:], F.gelu(mean))]
    dmean = torch.ops.aten.gelu_backward((dout * gate[-1]).sum((1, 2), keepdim=True), mean)
    dz = (dmean / (context.shape[1] * context.shape[2])).expand_as(dout)
    dweights = []
    for level in reversed(range(len(weights))):
        dconvolved = torch.ops.aten.gelu_backward(torch.addcmul(dz, dout, gate[level]), convolved[level])
        dz, dweight, _ = depthwise.backward(dconvolved, z[level], weights[level], None, UNDILATED)
        dweights.insert(0, dweight)
    return dz.to(context.dtype).contiguous(), torch.cat(dgates, -1).to(gates.dtype), dweights
