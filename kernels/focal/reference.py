"""Focal modulation as its definition reads: one depthwise convolution after another, on any device and dtype.

The maps stay channels-last; a convolution sees them as a channels_last NCHW view, so nothing is copied. This file is
the specification that the other backends are tested against, and on CPUs the fastest there is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def unsupported(
    direction: str, context: Tensor, gates: Tensor, weights: Tensor, kernels: Sequence[int], normalize: bool
) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _per_level(weights: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """[C, k_1^2 + ... + k_L^2] -> L kernels [C, 1, k, k]."""
    levels = _wide(weights).split([k * k for k in kernels], 1)
    return [level.reshape(-1, 1, k, k) for level, k in zip(levels, kernels, strict=True)]


def _depthwise(z: Tensor, weight: Tensor) -> Tensor:
    """[B, H, W, C] -> the same, through a convolution of each channel by itself with zeros around the map."""
    z = F.conv2d(z.permute(0, 3, 1, 2), weight, padding=weight.shape[-1] // 2, groups=len(weight))
    return z.permute(0, 2, 3, 1)


def _depthwise_gradients(dout: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the input and of the weight."""
    pad = weight.shape[-1] // 2
    dout, z = dout.permute(0, 3, 1, 2), z.permute(0, 3, 1, 2)
    dz, dweight, _ = torch.ops.aten.convolution_backward(
        dout, z, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], len(weight), [True, True, False]
    )
    return dz.permute(0, 2, 3, 1), dweight


def forward(context: Tensor, gates: Tensor, weights: Tensor, kernels: Sequence[int], normalize: bool) -> Tensor:
    """Return the modulator [B, H, W, C] of a context [B, H, W, C] under gates [B, H, W, L + 1]."""
    z, gate = _wide(context), _wide(gates).split(1, -1)
    out = z.new_zeros(z.shape)
    for level, weight in enumerate(_per_level(weights, kernels)):
        z = torch.ops.aten.gelu_(_depthwise(z, weight))
        out.addcmul_(z, gate[level])
    out.addcmul_(F.gelu(z.mean((1, 2), keepdim=True)), gate[-1])
    if normalize:
        out /= len(gate)
    return out.to(context.dtype)


def backward(
    dout: Tensor, context: Tensor, gates: Tensor, weights: Tensor, kernels: Sequence[int], normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of context, gates and weights; the contexts are computed again."""
    dout, gate = _wide(dout), _wide(gates).split(1, -1)
    if normalize:
        dout = dout / len(gate)
    levels = _per_level(weights, kernels)
    z, convolved = [_wide(context)], []
    for weight in levels:
        convolved.append(_depthwise(z[-1], weight))
        z.append(F.gelu(convolved[-1]))
    mean = z[-1].mean((1, 2), keepdim=True)
    dgates = [(dout * x).sum(-1, keepdim=True) for x in (*z[1:], F.gelu(mean))]
    dmean = torch.ops.aten.gelu_backward((dout * gate[-1]).sum((1, 2), keepdim=True), mean)
    dz = (dmean / (context.shape[1] * context.shape[2])).expand_as(dout)
    dweights = []
    for level in reversed(range(len(levels))):
        dconvolved = torch.ops.aten.gelu_backward(torch.addcmul(dz, dout, gate[level]), convolved[level])
        dz, dweight = _depthwise_gradients(dconvolved, z[level], levels[level])
        dweights.insert(0, dweight.flatten(1))
    dweight = torch.cat(dweights, 1) if levels else torch.empty_like(weights)
    return dz.to(context.dtype).contiguous(), torch.cat(dgates, -1).to(gates.dtype), dweight.to(weights.dtype)
