"""Depthwise convolution by torch's convolutions, which are slow where they are dilated.

Of a map whose rows and columns are dealt out in turn to d x d phases, a convolution of dilation d convolves each phase
by itself without dilation. Made for CPUs, right on any device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import unsupported, widen

__all__ = ["backward", "forward", "unsupported"]


def _phases(dilation: Sequence[int], x: Tensor) -> tuple[int, int]:
    """Return how many phases rows and columns have: one for each step of the dilation, but none of them empty."""
    return tuple(min(step, length) for step, length in zip(dilation, x.shape[1:3], strict=True))


def _split(x: Tensor, dilation: Sequence[int]) -> Tensor:
    """Return the phases of a map, [B, H, W, C] -> [phases * B, ceil(H / d), ceil(W / d), C], short ones zero-padded."""
    rows, columns = _phases(dilation, x)
    if rows == columns == 1:
        return x
    x = F.pad(x, (0, 0, 0, -x.shape[2] % columns, 0, -x.shape[1] % rows))
    return x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def _join(phases: Tensor, dilation: Sequence[int], like: Tensor) -> Tensor:
    """Return the map [B, H, W, C] from its phases, in shape and dtype like another map."""
    rows, columns = _phases(dilation, like)
    if rows == columns == 1:
        return phases.to(like.dtype).contiguous()
    x = phases.unflatten(0, (rows, columns, like.shape[0])).permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)
    return x[:, : like.shape[1], : like.shape[2]].to(like.dtype).contiguous()


def _trim(weight: Tensor, phases: Tensor) -> Tensor:
    """Return the part of a kernel [C, 1, kh, kw] that can meet anything but padding on maps of this size."""
    for axis in (2, 3):
        size = weight.shape[axis]
        reach = min(size // 2, phases.shape[axis - 1] - 1)
        weight = weight.narrow(axis, size // 2 - reach, 2 * reach + 1)
    return weight


def _convolve(wide: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]) -> Tensor:
    phases = _split(wide, dilation)
    kernel = _trim(weight, phases).to(phases.dtype)
    out = F.conv2d(
        phases.permute(0, 3, 1, 2),
        kernel,
        None if bias is None else bias.to(phases.dtype),
        padding=[size // 2 for size in kernel.shape[2:]],
        groups=len(kernel),
    )
    return _join(out.permute(0, 2, 3, 1), dilation, wide)


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
        torch.ops.aten.gelu_(out)
    if residual:
        out += wide
    if add is not None:
        out += add
    return out.to(x.dtype)


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
    wide, dwide = widen(x), widen(dout)
    dsums = torch.ops.aten.gelu_backward(dwide, _convolve(wide, weight, bias, dilation)) if activation else dwide
    phases, dphases = _split(wide, dilation), _split(dsums, dilation)
    kernel = _trim(weight, phases).to(phases.dtype)
    dx, dkernel, dbias = torch.ops.aten.convolution_backward(
        dphases.permute(0, 3, 1, 2),
        phases.permute(0, 3, 1, 2),
        kernel,
        [len(kernel)],
        stride=[1, 1],
        padding=[size // 2 for size in kernel.shape[2:]],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=len(kernel),
        output_mask=[True, True, bias is not None],
    )
    rows, columns = ((full - size) // 2 for full, size in zip(weight.shape[2:], kernel.shape[2:], strict=True))
    dweight = F.pad(dkernel, (columns, columns, rows, rows)).to(weight.dtype).contiguous()
    dx = _join(dx.permute(0, 2, 3, 1), dilation, wide)
    if residual:
        dx += dwide
    if totals is not None:
        totals.copy_(dx.sum((0, 1, 2)))
    return dx.to(x.dtype), dweight, None if bias is None else dbias.to(bias.dtype)
