"""From a kind of call to bound kernels: tiles or strips of the map, how they are shared out, and the launches."""

from collections.abc import Sequence
from itertools import chain

import triton
from torch import Tensor, dtype, empty, float32

from ..fused_total import Total
from ..launch import BoundKernel, wide
from .fused_correlate import correlate_strips
from .fused_kernels import convolve, correlate
from .fused_strips import convolve_strips
from .fused_weights import arrange, arrange_both, settle

PROGRAMS = 1056  # to aim for where tiles can be shared out: 8 for each of 132 multiprocessors
MOST_TAPS = 9  # rows of taps that a program of `convolve` holds
MOST_STRIP_TAPS = 49  # that a lane of a strip holds
ARRANGED = 1024  # weights that a program lays out


Strides = Sequence[int]


def lanes_of(channels: int) -> int:
    """Return how many channels a program takes: 64, or 32 if that leaves none over, or all of a few."""
    return 32 if channels % 64 and channels % 32 == 0 else min(64, triton.next_power_of_2(channels))


def _even_parts(length: int, most: int) -> int:
    """Return the length of parts of equal length, at most `most`."""
    return -(-length // -(-length // most))


def strip_rows(longest: int, halo: int, strips: int, programs: int) -> int:
    """Return the rows of a strip for the fewest rows of inputs in turn.

    Args:
        longest, strips: rows and number of strips that are not cut.
        halo: rows of inputs that a part of one needs beside those of its outputs.
        programs: that run at a time.
    """

    def turns(parts: int) -> int:
        rows = -(-longest // parts) + (halo if parts > 1 else 0)
        return -(-strips * parts // programs) * rows

    most = max(1, longest // max(1, 2 * halo))
    return -(-longest // min(range(1, most + 1), key=turns))


class Call:
    """A kind of call: shapes, compile-time sizes, and how the map is cut into tiles; into strips where taps are few."""

    def __init__(self, shape: Sequence[int], kernel: tuple[int, int], dilation: Sequence[int], *maps: Tensor):
        batch, height, width, channels = shape
        self.kernel, self.channels = kernel, channels
        self.extent = (height, width, channels, *dilation)
        longest = -(-height // dilation[0])
        tall = kernel[0] > 7
        rows = _even_parts(longest, 14 if tall else 8)
        columns = 8 if width <= 8 or tall else 16
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
        self.options = {"num_warps": max(1, columns * lanes // (128 if tall else 256))}
        # Taps further out meet nothing but padding.
        self.used = tuple(min(k, 2 * -(-n // d) - 1) for k, n, d in zip(kernel, shape[1:3], dilation, strict=True))
        self.strips = Strips(shape, self.used, dilation) if self.used[0] * self.used[1] <= MOST_STRIP_TAPS else None


class Strips:
    """How a map is cut into strips, and their compile-time sizes."""

    def __init__(self, shape: Sequence[int], kernel: tuple[int, int], dilation: Sequence[int]):
        batch, height, width, channels = shape
        self.step = dilation[1]
        places = -(-width // dilation[1])
        taps = kernel[0] * kernel[1]
        # More columns would leave too few warps a multiprocessor; at 25 taps 7 pay on narrow maps.
        columns = _even_parts(places, 7 if taps <= 9 or (taps <= 25 and places <= 14) else 5)
        # That run at a time, by the registers that the taps leave.
        self.programs = 132 * (16 if taps <= 9 else 12 if taps <= 25 else 8)
        # 32 lanes with one channel each took a third longer at 96 channels, where 64 leave half a warp over.
        lanes = max(32, min(64, triton.next_power_of_2(channels)))
        self.blocks = -(-channels // lanes)
        across = batch * dilation[0] * dilation[1] * -(-places // columns)
        longest = -(-height // dilation[0])
        self.rows = strip_rows(longest, kernel[0] - 1, across * self.blocks, self.programs)
        self.count = across * -(-longest // self.rows)
        # Rows loaded ahead, of which a strip takes a multiple; 49 taps leave few registers for more than one.
        self.ahead = 2 if taps <= 25 and self.rows > 5 else 1
        self.sizes = {
            "KH": kernel[0],
            "KW": kernel[1],
            "COLUMNS": columns,
            "WHOLE": places <= columns,
            "CHANNELS": lanes,
            "EVEN": channels % lanes == 0,
            "AFTER": max(0, columns - width // dilation[1]),
        }
        self.overlap = max(0, -(-places // columns) * columns - width // dilation[1]) if places > columns else 0

    def steps(self, **strides: Strides) -> dict[str, int]:
        """Return the distances between columns of a strip, of maps of these strides."""
        return {f"{name}_STEP": stride[2] * self.step for name, stride in strides.items()}

    def each(self, programs: int) -> int:
        """Return how many strips a program takes where so many run at a time, for the fewest in turn."""
        least = max(1, self.count * self.blocks // programs)

        def turns(each: int) -> int:
            return -(-(-(-self.count // each) * self.blocks) // programs) * each

        return min(least, least + 1, key=turns)


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
        epilogue: str = "",
        inner: Strides | None = None,
        totalled: bool = False,
    ):
        strides = (x[:3], (more or out)[:3], (inner or out)[:3], out[:3])
        kind = {"HAS_BIAS": biased, "EPILOGUE": epilogue, "FLIP": flip}
        self.by_strips = call.strips is not None
        self.total = Total(call.strips.count, call.channels) if totalled and self.by_strips else None
        if not self.by_strips:
            self.kernel = BoundKernel(
                convolve,
                (call.tiles, call.blocks, 1),
                (*strides, *call.extent),
                {**call.sizes, **kind},
                **call.options,
            )
        else:
            full = {"FULL_KH": call.kernel[0], "FULL_KW": call.kernel[1]}
            self.kernel = BoundKernel(
                convolve_strips,
                (call.strips.count * call.strips.blocks, 1, 1),
                (*strides, *call.extent, call.strips.rows),
                {
                    **full,
                    **call.strips.sizes,
                    **call.strips.steps(X=x, MORE=more or out, INNER=inner or out, OUT=out),
                    "OVERLAP": call.strips.overlap,
                    "AHEAD": call.strips.ahead,
                    **kind,
                },
                num_warps=1,
            )

    def __call__(
        self,
        x: Tensor,
        taps: Tensor,
        bias: Tensor | None,
        more: Tensor | None,
        out: Tensor,
        inner: Tensor | None = None,
        totals: Tensor | None = None,
    ) -> None:
        """Fill `out`, and if the plan was made for it `totals` [C] with the sums of the outputs."""
        tensors = (x, taps, bias, more, inner, out)
        if self.total:
            partial = self.total.partial(x)
            self.kernel(*tensors, partial)
            self.total.fill(partial, totals)
            return
        self.kernel(*tensors, *((None,) if self.by_strips else ()))
        if totals is not None:
            totals.copy_(out.sum((0, 1, 2), dtype=float32))


class Correlate:
    """Gradients of the weights and the bias of a kind of call, for maps of these strides."""

    def __init__(self, call: Call, x: Strides, dout: Strides):
        kernel = call.kernel
        if call.strips is None:
            columns = kernel[1] * -(-kernel[0] // call.sizes["TAPS"])
            each = max(1, call.tiles * call.blocks * columns // PROGRAMS)
            programs = -(-call.tiles // each)
            self.kernel = BoundKernel(
                correlate,
                (columns, call.blocks, programs),
                (x[:3], dout[:3], *call.extent, call.tiles, each),
                call.sizes,
                **call.options,
            )
        else:
            strips = call.strips
            each = strips.each(strips.programs)
            programs = -(-strips.count // each)
            self.kernel = BoundKernel(
                correlate_strips,
                (programs * strips.blocks, 1, 1),
                (x[:3], dout[:3], *call.extent, strips.rows, strips.count, each),
                {
                    **strips.sizes,
                    **strips.steps(X=x, DOUT=dout),
                    "OVERLAP": strips.overlap,
                    "AHEAD": 1,
                    # Where it saves enough registers to be worth converting rows again.
                    "PACKED": strips.sizes["KH"] > 3 and (strips.sizes["WHOLE"] or strips.sizes["COLUMNS"] > 5),
                },
                num_warps=1,
                # Else the compiler aims for more warps than there are, and puts off loads for it.
                **({"maxnreg": 128} if strips.sizes["KH"] * strips.sizes["KW"] <= 9 else {}),
            )
        self.gradients = Gradients(call, programs, call.used if call.strips else kernel)

    def __call__(
        self, x: Tensor, dout: Tensor, weight_dtype: dtype = float32, bias_dtype: dtype = float32
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of the weights as [C, 1, KH, KW] and of the bias; one plan is for one pair of dtypes."""
        partial = self.gradients.partial(x)
        self.kernel(x, dout, partial)
        return self.gradients(partial, weight_dtype, bias_dtype)


class Gradients:
    """The gradients of weights and bias of a kind of call from what programs left of those of the `used` taps."""

    def __init__(self, call: Call, programs: int, used: tuple[int, int]):
        self.settle = Settle(programs, call.channels, call.kernel, used, (1, call.kernel[0] * call.kernel[1]))
        self.partial = self.settle.partial
        self.weight = (call.channels, 1, *call.kernel)

    def __call__(self, partial: Tensor, weight_dtype: dtype, bias_dtype: dtype) -> tuple[Tensor, Tensor]:
        dweight = empty(self.weight, dtype=weight_dtype, device=partial.device)
        dbias = empty(self.weight[:1], dtype=bias_dtype, device=partial.device)
        self.settle(partial, dweight, dbias)
        return dweight, dbias


class Arrange:
    """The weights of a depthwise convolution, or of two of equal channels in one launch, as the kernels read them."""

    def __init__(self, *weights: Tensor):
        channels = len(weights[0])
        kernels = [tuple(weight.shape[2:]) for weight in weights]
        self.shapes = [(*kernel, channels) for kernel in kernels]
        strides = (tuple(weight.stride(axis) for axis in (0, 2, 3)) for weight in weights)
        names = ("KH", "KW") if len(weights) == 1 else ("FIRST_KH", "FIRST_KW", "SECOND_KH", "SECOND_KW")
        self.kernel = BoundKernel(
            arrange if len(weights) == 1 else arrange_both,
            (-(-max(weight.numel() for weight in weights) // ARRANGED), len(weights), 1),
            (channels, *strides),
            {**dict(zip(names, chain(*kernels), strict=True)), "BLOCK": ARRANGED},
            num_warps=4,
        )

    def __call__(self, *weights: Tensor) -> list[Tensor]:
        """Return the taps of each weight, [KH, KW, C] in float32."""
        taps = [empty(shape, dtype=float32, device=weights[0].device) for shape in self.shapes]
        self.kernel(*weights, *taps)
        return taps


class Settle:
    """The sum of gradients over programs, [programs, taps + 1, C], the bias last.

    Args:
        kernel: taps that the gradient of the weights has, `strides` apart along taps and channels.
        used: taps around the middle that programs left sums of.
    """

    def __init__(
        self, programs: int, channels: int, kernel: tuple[int, int], used: tuple[int, int], strides: tuple[int, int]
    ):
        self.shape = (programs, used[0] * used[1] + 1, channels)
        block = min(128, triton.next_power_of_2(programs))
        columns = min(64, triton.next_power_of_2(channels))
        sizes = {"FULL_KH": kernel[0], "FULL_KW": kernel[1], "KH": used[0], "KW": used[1]}
        self.kernel = BoundKernel(
            settle,
            (kernel[0] * kernel[1] + 1, -(-channels // columns), 1),
            (programs, channels, strides),
            {**sizes, "BLOCK": block, "COLUMNS": columns},
            num_warps=8 if block == 128 else 2,
        )

    def partial(self, like: Tensor) -> Tensor:
        return empty(self.shape, dtype=float32, device=like.device)

    def __call__(self, partial: Tensor, dweight: Tensor, dbias: Tensor) -> None:
        self.kernel(partial, dweight, dbias)
