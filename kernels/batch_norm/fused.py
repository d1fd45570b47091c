"""Fused batch normalisation in Triton: the map is read twice forward, and with its gradient twice backward.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..launch import BoundKernel, Plans, on_device, split, why_not
from .fused_kernels import differentiate, normalize, settle, sum_rows
from .gradient import dtype_of_dx

BLOCK, CHANNELS = 32, 64  # of rows, and of channels that lie together
PROGRAMS = 1056  # to aim for forward: 8 for each of 132 multiprocessors
BACKWARD_PROGRAMS = 924  # 7 for each: registers let no more run at a time, and a few left over took as long again
SETTLED = (512, 8)  # rows and channels of sums that are read at a time
_plans = Plans()


def unsupported(direction: str, x: Tensor, *rest: object) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    return why_not(x)


def _bound(
    kernel, shape: torch.Size, strides: Sequence[int], programs: int, tail: Sequence[float] = (), **constants: bool
) -> tuple[BoundKernel, int]:
    """Return a kernel on rows [rows, channels], and how many splits of the rows its programs take.

    Args:
        strides: of the rows of each map that is read.
        programs: to aim for.
        tail: what the kernel takes after the number of rows of a program.
    """
    rows, channels = shape
    width = max(16, min(CHANNELS, triton.next_power_of_2(channels)))
    blocks = -(-channels // width)
    splits, each = split(rows, BLOCK, blocks, programs)
    even = rows % BLOCK == 0 and channels % width == 0
    grid, arguments = (blocks, splits, 1), (rows, channels, *strides, each, *tail)
    sizes = {"BLOCK": BLOCK, "CHANNELS": width, "EVEN": even}
    return BoundKernel(kernel, grid, arguments, {**sizes, **constants}, num_warps=4), splits


class Sums:
    """Mean and variance of rows, or backward the gradients of bias and weight."""

    def __init__(self, shape: torch.Size, strides: Sequence[int], eps: float, backward: bool):
        rows, channels = shape
        programs = BACKWARD_PROGRAMS if backward else PROGRAMS
        self.sum_rows, splits = _bound(sum_rows, shape, strides, programs, BACKWARD=backward)
        self.partial = (splits, 2, channels)
        block, width = SETTLED
        self.settle = BoundKernel(
            settle,
            (-(-channels // width), 1, 1),
            (splits, rows, channels, eps),
            {"BLOCK": block, "CHANNELS": width, "BACKWARD": backward},
            num_warps=8,
        )

    def __call__(self, x: Tensor, dout: Tensor | None, center: Tensor, var: Tensor | None) -> list[Tensor]:
        """Return both, each [C]."""
        partial, *found = (
            torch.empty(shape, dtype=torch.float32, device=x.device)
            for shape in (self.partial, self.partial[2:], self.partial[2:])
        )
        self.sum_rows(x, dout, center, partial)
        self.settle(partial, center, var, *found)
        return found


def _rows(x: Tensor) -> Tensor:
    """Return a map as rows of channels in order: a view if it can be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


@on_device
def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised map in `dtype`, and mean and variance [C]."""
    rows, weight, bias = _rows(x), weight.contiguous(), bias.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if not out.numel():
        return out, *(torch.zeros(len(weight), dtype=torch.float32, device=x.device) for _ in range(2))
    sums, normalized = _plans(
        lambda: (
            Sums(rows.shape, (rows.stride(0), 0), eps, backward=False),
            _bound(normalize, rows.shape, rows.stride()[:1], PROGRAMS, (eps,))[0],
        ),
        ("forward", eps, dtype),
        *(rows, weight, bias),
    )
    # Sums of squares far from zero would cancel: any value of a channel is nearer to its others.
    mean, var = sums(rows, None, rows, None)
    normalized(rows, mean, var, weight, bias, out)
    return out, mean, var


@on_device
def backward(
    dout: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias, given that of the output."""
    rows, gradients, weight = _rows(x), _rows(dout), weight.contiguous()
    dx = torch.empty(x.shape, dtype=dtype_of_dx(dout, x), device=x.device)
    if not dx.numel():
        return dx, torch.zeros_like(weight), torch.zeros_like(bias)
    strides = (rows.stride(0), gradients.stride(0))
    sums, differentiated = _plans(
        lambda: (
            Sums(rows.shape, strides, eps, backward=True),
            _bound(differentiate, rows.shape, strides[::-1], BACKWARD_PROGRAMS, (eps,))[0],
        ),
        ("backward", eps),
        *(rows, gradients, mean, var, weight),
    )
    dbias, dweight = sums(rows, gradients, mean, var)
    differentiated(gradients, rows, mean, var, weight, dbias, dweight, dx)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)
