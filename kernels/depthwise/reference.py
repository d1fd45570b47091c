"""Depthwise convolution as its definition reads: a sum over taps of the shifted map times the tap's weights.

Runs on any device and dtype, and accumulates in at least float32. This file is the specification that the other
backends are tested against.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widen


def unsupported(direction: str, *call: object) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def _reach(weight: Tensor, dilation: Sequence[int]) -> tuple[int, int]:
    """Return how many rows and columns the kernel reaches beyond its centre."""
    return tuple(size // 2 * step for size, step in zip(weight.shape[2:], dilation, strict=True))


def _pad(x: Tensor, reach: tuple[int, int]) -> Tensor:
    return F.pad(x, (0, 0, reach[1], reach[1], reach[0], reach[0]))


def _taps(weight: Tensor, dilation: Sequence[int], padded: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield each tap's row and column in the kernel, and the part of the padded map that it meets, [B, H, W, C]."""
    rows, columns = _reach(weight, dilation)
    height, width = padded.shape[1] - 2 * rows, padded.shape[2] - 2 * columns
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            top, left = i * dilation[0], j * dilation[1]
            yield i, j, padded[:, top : top + height, left : left + width]


def _convolve(wide: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]) -> Tensor:
    taps = weight[:, 0].to(wide.dtype)
    out = torch.zeros_like(wide)
    for i, j, part in _taps(weight, dilation, _pad(wide, _reach(weight, dilation))):
        out = out + taps[:, i, j] * part
    return out if bias is None else out + bias


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: Sequence[int],
    activation: str | None = None,
    residual: bool = False,
    add: Tensor | None = None,
) -> Tensor:
    """Return the output [B, H, W, C] in the dtype of x; `add` is a map like x that is added at the end."""
    wide = widen(x)
    out = _convolve(wide, weight, bias, dilation)
    if activation:
        out = F.gelu(out)
    if residual:
        out = out + wide
    if add is not None:
        out = out + add
    return out.to(x.dtype).contiguous()


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: Sequence[int],
    activation: str | None = None,
    residual: bool = False,
    totals: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight and bias, given that of the output; fill `totals` [C] with the sums of x's."""
    wide, dwide, taps = widen(x), widen(dout), weight[:, 0].to(widen(x).dtype)
    if activation:
        dwide = torch.ops.aten.gelu_backward(dwide, _convolve(wide, weight, bias, dilation))
    reach = _reach(weight, dilation)
    padded = _pad(wide, reach)
    dpadded, dtaps = torch.zeros_like(padded), torch.zeros_like(taps)
    for (i, j, part), (_, _, dpart) in zip(
        _taps(weight, dilation, padded), _taps(weight, dilation, dpadded), strict=True
    ):
        dpart += taps[:, i, j] * dwide
        dtaps[:, i, j] = (part * dwide).sum((0, 1, 2))
    dx = dpadded[:, reach[0] : reach[0] + x.shape[1], reach[1] : reach[1] + x.shape[2]]
    if residual:
        dx = dx + widen(dout)
    if totals is not None:
        totals.copy_(dx.sum((0, 1, 2)))
    dbias = None if bias is None else dwide.sum((0, 1, 2)).to(bias.dtype)
    return dx.to(x.dtype).contiguous(), dtaps.unsqueeze(1).to(weight.dtype), dbias
