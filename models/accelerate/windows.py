"""Attention inside windows of a channels-last map, with the parameters of timm's modules."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ...kernels.window import window_attention
from .swap import readable


def pad(x: Tensor, window: Sequence[int]) -> Tensor:
    """Zero-pad a map [B, H, W, C] at the bottom and right to whole windows."""
    bottom, right = -x.shape[1] % window[0], -x.shape[2] % window[1]
    # Padding by nothing would copy the map.
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def attend(
    qkv: Tensor, heads: int, window: Sequence[int], scale: float, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attend within windows of a map, given its packed projection.

    Args:
        qkv: [B, H, W, 3 * heads * D], whole windows.
        bias: [heads, N, N] in any dtype.
        mask: [windows, N, N] to add, in any dtype.

    Returns:
        [B, H, W, heads * D].
    """
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)
    out = window_attention(q, k, v, window, bias=readable(bias, q), mask=readable(mask, q), scale=scale)
    return out.flatten(-2)
