"""Dynamic depthwise convolution as one convolution with a group for each channel of each sample.

Runs on any device and dtype, and accumulates in at least float32. This file is the specification that the other
backends are tested against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import narrow, widen


def unsupported(direction: str, x: Tensor, weight: Tensor) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def _fold(x: Tensor) -> Tensor:
    """Return [B, H, W, C] as one image of all samples' channels, [1, B * C, H, W], in at least float32."""
    return widen(x).permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(0)


def _unfold(image: Tensor, like: Tensor) -> Tensor:
    """Undo `_fold`, in the dtype of `like`."""
    return narrow(image[0].unflatten(0, (-1, like.shape[3])).permute(0, 2, 3, 1), like.dtype).contiguous()


def _kernels(weight: Tensor) -> Tensor:
    return widen(weight).flatten(0, 1).unsqueeze(1)


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """Return the output [B, H, W, C] in the dtype of x."""
    kernels = _kernels(weight)
    padding = [size // 2 for size in weight.shape[2:]]
    return _unfold(F.conv2d(_fold(x), kernels, padding=padding, groups=len(kernels)), x) if len(x) else x.clone()


def backward(dout: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight, given that of the output."""
    if not len(x):
        return dout.clone(), torch.zeros_like(weight)
    kernels = _kernels(weight)
    dx, dkernels, _ = torch.ops.aten.convolution_backward(
        _fold(dout),
        _fold(x),
        kernels,
        None,
        stride=[1, 1],
        padding=[size // 2 for size in weight.shape[2:]],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=len(kernels),
        output_mask=[True, True, False],
    )
    return _unfold(dx, x), narrow(dkernels.view(weight.shape), weight.dtype)
