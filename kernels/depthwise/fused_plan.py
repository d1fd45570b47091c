"""From a kind of call to bound kernels: tiles of the map, how they are shared out, and the launches."""

from collections.abc import Sequence

import triton
from torch import Tensor, empty, float32

from ..launch import BoundKernel, wide
from .fused_kernels import convolve, correlate

PROGRAMS = 1056  # to aim for where tiles can be shared out: 8 for each of 132 multiprocessors
MOST_ROWS = 8
MOST_TAPS = 9


Strides = Sequence[int]


def lanes_of(channels: int) -> int:
    """Return how many channels a program takes: 64, or 32 if that leaves none over, or all of a few."""
    return 32 if channels % 64 and channels % 32 == 0 else min(64, triton.next_power_of_2(channels))


class Call:
    """A kind of call: shapes, compile-time sizes, and how the map is cut."""

    def __init__(self, shape: Sequence[int], kernel: tuple[int, int], dilation: Sequence[int], *maps: Tensor):
        batch, height, width, channels = shape
        self.kernel, self.channels = kernel, channels
        self.extent = (height, width, channels, *dilation)
        longest = -(-height // dilation[0])
        rows = -(-longest // -(-longest // MOST_ROWS))
        columns = 8 if width <= 8 else 16
        lanes = lanes_of(channels)
        chunks = -(-kernel[0] // MOST_TAPS)
        self.tiles = batch * dilation[0] * -(-longest // rows) * -(-width // columns)
        self.blocks = -(-channels // lanes)
        self.sizes = {
            "KH": kernel[0],
            "KW": kernel[1],
            "TAPS": -(-kernel[0] // chunks),
            "ROWS": rows,
            "COLUMNS": columns,
            "CHANNELS": lanes,
            "EVEN": channels % lanes == 0,
            "WIDE": wide(*maps),
        }
        self.options = {"num_warps": max(1, columns * lanes // 256)}


class Convolve:
    """A convolution of a kind of call, or with `flip` that of the gradient of its input; for maps of these strides."""

    def __init__(
        self,
        call: Call,
        x: Strides,
        out: Strides,
        biased: bool = False,
        more: Strides | None = None,
        flip: bool = False,
    ):
        self.kernel = BoundKernel(
            convolve,
            (call.tiles, call.blocks, 1),
            (x[:3], (more or out)[:3], out[:3], *call.extent),
            {**call.sizes, "HAS_BIAS": biased, "HAS_MORE": more is not None, "FLIP": flip},
            **call.options,
        )

    def __call__(self, x: Tensor, taps: Tensor, bias: Tensor | None, more: Tensor | None, out: Tensor) -> None:
        self.kernel(x, taps, bias, more, out)


class Correlate:
    """Gradients of the weights and the bias of a kind of call, for maps of these strides."""

    def __init__(self, call: Call, x: Strides, dout: Strides):
        kernel = call.kernel
        columns = kernel[1] * -(-kernel[0] // call.sizes["TAPS"])
        each = max(1, call.tiles * call.blocks * columns // PROGRAMS)
        programs = -(-call.tiles // each)
        self.partial = (programs, kernel[0] * kernel[1] + 1, call.channels)
        self.taps = (*kernel, call.channels)
        self.kernel = BoundKernel(
            correlate,
            (columns, call.blocks, programs),
            (x[:3], dout[:3], *call.extent, call.tiles, each),
            call.sizes,
            **call.options,
        )

    def __call__(self, x: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the weights as [C, 1, KH, KW] and of the bias, in float32."""
        partial = empty(self.partial, dtype=float32, device=x.device)
        self.kernel(x, dout, partial)
        sums = partial.sum(0)
        return sums[:-1].view(self.taps).permute(2, 0, 1).unsqueeze(1), sums[-1]
