"""Dynamic depthwise convolution sample by sample, so that torch's convolutions read channels-last maps as they are."""

import torch
from torch import Tensor

from ..depthwise import blocked as depthwise

UNDILATED = (1, 1)


def unsupported(direction: str, x: Tensor, weight: Tensor) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    return None if x.device.type == "cpu" else f"it is for CPUs, the tensors are on {x.device.type}"


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """Return the output [B, H, W, C] in the dtype of x."""
    parts = [
        depthwise.forward(x[sample : sample + 1], kernels, None, UNDILATED)
        for sample, kernels in enumerate(weight.unsqueeze(2))
    ]
    return _join(parts, x)


def backward(dout: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight, given that of the output."""
    dx, dkernels = [], []
    for sample, kernels in enumerate(weight.unsqueeze(2)):
        part = slice(sample, sample + 1)
        dmap, dkernel, _ = depthwise.backward(dout[part], x[part], kernels, None, UNDILATED)
        dx.append(dmap)
        dkernels.append(dkernel[None, :, 0])
    return _join(dx, x), _join(dkernels, weight)


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    """Return the batch of some samples, a single one without a copy."""
    if not parts:
        return torch.empty_like(like)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
