"""From a kind of call to bound kernels: tiles of the map, blocks of tokens, and the launches."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import triton
from torch import Tensor, dtype, empty, float32

from ..depthwise.fused_plan import Call as Convolution
from ..depthwise.fused_plan import Convolve, Correlate, lanes_of, strip_rows
from ..fused_rows import PRODUCTS
from ..large_kernel.fused_point import project
from ..launch import BoundKernel, wide
from .fused_kernels import differentiate_level, focus
from .fused_strips import differentiate_level_strips, focus_strips
from .fused_token_kernels import differentiate_gates, differentiate_last, gather, modulate
from .saved import Saved

TILE = 4096  # tokens by channels of a program that multiplies nothing
GATES_BLOCK = 32  # tokens that `differentiate_gates` takes at a time, of up to 128 channels
GATES_STAGES = 3  # blocks of it, or channels of one, under way at a time
GATES_REGISTERS = 128  # of a thread of it: 16 warps a multiprocessor
LAST_REGISTERS = 80  # of one of `differentiate_last`: 24 warps
MOST_PARTS = 32  # sums over tokens that are left to those who need them
REGISTERS = 128  # of a thread that convolves a tile; left alone, the compiler takes up to 255 for all GELUs at once
STRIP_REGISTERS = 168  # of a thread that convolves a strip with up to 5x5 taps: 12 warps a multiprocessor
STRIPS = 12 * 132  # programs of strips that run at a time
POINT_BLOCK = 64  # tokens of a program of `modulate`, half of them in float32
POINT_REGISTERS = 168  # of a thread of it
POINT_STAGES = 4  # of its loop over channels: with 3 steps all that they load is under way at once
MOST_COLUMNS = 128  # channels up to which `modulate` does all; of more the gated sum is made first


FOCUS_COLUMNS = (7, 5, 4)  # of a strip of `focus_strips`: those that leave the fewest over
LEVEL_COLUMNS = (4,)  # of one of `differentiate_level_strips`, which holds the next row of three maps
MANY_TAPS_COLUMNS = (5, 4)  # of either with more than 5x5 taps


def _parts(parts: int) -> dict[str, int]:
    return {"PARTS": parts, "PADDED": triton.next_power_of_2(parts)}


class Strips:
    """How a map [B, H, W, C] is cut into strips for `kernel` x `kernel` taps, and their compile-time sizes.

    Strips lie side by side where that leaves no lane idle.
    """

    def __init__(self, shape: Sequence[int], kernel: int, columns: Sequence[int], pack: int, wide: bool):
        batch, height, width, channels = shape
        self.columns = min(columns if kernel <= 5 else MANY_TAPS_COLUMNS, key=lambda count: -(-width // count) * count)
        lanes = max(32, min(64, triton.next_power_of_2(channels)))
        across = -(-width // self.columns)
        side = lanes // math.gcd(lanes, channels)
        fits = width % self.columns == 0
        self.side = side if fits and across % side == 0 else 1
        self.blocks = -(-channels * self.side // lanes)
        strips = batch * across // self.side
        self.rows = strip_rows(height, kernel - 1, strips * self.blocks, STRIPS)
        self.count = strips * -(-height // self.rows)
        self.sizes = {
            "KH": min(kernel, 2 * height - 1),
            "KW": min(kernel, 2 * width - 1),
            "FULL_KH": kernel,
            "FULL_KW": kernel,
            "COLUMNS": self.columns,
            "SIDE": self.side,
            "WHOLE": width <= self.columns,
            "INSIDE": self.columns if fits else 0,
            "CHANNELS": lanes,
            "EVEN": channels * self.side % lanes == 0,
            "PACK": pack,
            "WIDE": wide,
        }


class Call:
    """A kind of call: the projected map [B, H, W, D], its strides, and the kernel size of each level."""

    def __init__(self, projected: Tensor, point_weight: Tensor, kernels: Sequence[int], normalize: bool):
        self.maps, self.height, self.width, self.row = projected.shape
        self.tokens, self.channels = self.height * self.width, len(point_weight)
        self.levels, self.kernels, self.dtype = len(kernels), kernels, projected.dtype
        self.stride = projected.stride(2)
        self.factor = 1 / (self.levels + 1) if normalize else 1.0
        self.context = projected.stride()[:3]
        self.plain = self._strides(self.channels)
        self.stacked = (self.levels * self.plain[0], *self.plain[1:])
        self.row_strides = self._strides(self.row)
        self.extent = (self.height, self.width, self.channels)
        shape = (self.maps, *self.extent)
        self.convolutions = [Convolution(shape, (k, k), (1, 1), projected) for k in kernels]
        lanes = 128 if self.channels % 128 == 0 else lanes_of(self.channels)
        self.tile = {"BLOCK": TILE // lanes, "CHANNELS": lanes}
        self.grid = (-(-self.channels // lanes), -(-self.tokens * lanes // TILE), self.maps)
        even = projected.data_ptr() % 16 == 0 and self.channels % 2 == 0 and self.stride % 2 == 0
        self.pack = 2 if projected.dtype.itemsize == 2 and even else 1
        self.wide = wide(projected)

    def _strides(self, row: int) -> tuple[int, int, int]:
        """Return those of batch, rows and columns of a map of tokens of `row` numbers."""
        return (self.tokens * row, self.width * row, row)

    def parts(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, the contexts and the gates with what is left over."""
        return projected.split((self.channels, self.channels, self.row - 2 * self.channels), -1)

    def strips(self, level: int, columns: Sequence[int]) -> Strips | None:
        """Return how a level's convolution cuts the map into strips: not if its taps are many."""
        if self.convolutions[level].strips is None:
            return None
        return Strips((self.maps, *self.extent), self.kernels[level], columns, self.pack, self.wide)

    def convolving(
        self,
        level: int,
        strips: Strips | None,
        by_tiles: Callable[..., None],
        by_strips: Callable[..., None],
        arguments: tuple,
        steps: dict[str, int],
        constants: dict[str, Any],
    ) -> BoundKernel:
        """Return the kernel that convolves with a level's taps, by `strips` if there are some.

        `steps` are distances between tokens, which strips take at compile time.
        """
        convolution, kernel = self.convolutions[level], self.kernels[level]
        if strips is None:
            return BoundKernel(
                by_tiles,
                (convolution.tiles, convolution.blocks, 1),
                arguments,
                {**convolution.sizes, **constants},
                maxnreg=REGISTERS,
                **convolution.options,
            )
        return BoundKernel(
            by_strips,
            (strips.count, strips.blocks, 1),
            (*arguments, strips.rows),
            {**steps, **strips.sizes, **constants},
            maxnreg=STRIP_REGISTERS if kernel <= 5 else None,
            num_warps=1,
        )

    def map(self, like: Tensor) -> Tensor:
        return empty((self.maps, *self.extent), dtype=self.dtype, device=like.device)

    def stack(self, like: Tensor) -> Tensor:
        return empty((self.maps, self.levels, *self.extent), dtype=self.dtype, device=like.device)


class ForwardPlan:
    """The output of a kind of call."""

    def __init__(self, call: Call, point_weight: Tensor, point_bias: Tensor | None, keeps: bool):
        self.call, self.keeps = call, keeps
        strips = [call.strips(level, FOCUS_COLUMNS) for level in range(call.levels)]
        self.kernels = [
            call.convolving(
                level,
                strips[level],
                focus,
                focus_strips,
                (call.stacked if level else call.context, call.stacked, *call.extent, 1 / call.tokens),
                {"Z_STEP": call.channels if level else call.stride, "STEP": call.channels},
                {"KEEPS": keeps, "SUMS": level + 1 == call.levels},
            )
            for level in range(call.levels)
        ]
        last = strips[-1]
        parts = (last.count * last.side if last else call.convolutions[-1].tiles) // call.maps
        self.partial = (call.maps, parts, call.channels)
        self.in_one = call.channels <= MOST_COLUMNS
        self.joins = self.in_one or parts > MOST_PARTS
        numbers = (call.stride, call.tokens, call.channels, call.factor)
        kind = {"LEVELS": call.levels, "KEEPS": keeps}
        if self.in_one:
            block = POINT_BLOCK // 2 if call.dtype == float32 else POINT_BLOCK
            self.modulate = BoundKernel(
                modulate,
                (-(-call.tokens // block), call.maps, 1),
                (*numbers, point_weight.stride(0)),
                {
                    **kind,
                    "BLOCK": block,
                    "COLUMNS": max(16, triton.next_power_of_2(call.channels)),
                    "DEPTH": max(16, lanes_of(call.channels)),
                    "HAS_BIAS": point_bias is not None,
                    "PRODUCT": PRODUCTS[call.dtype],
                },
                maxnreg=POINT_REGISTERS,
                num_warps=4,
                num_stages=POINT_STAGES,
            )
        else:
            self.modulate = BoundKernel(
                gather,
                call.grid,
                numbers,
                {**kind, **_parts(1 if self.joins else parts), **call.tile},
                num_warps=4,
            )

    def __call__(
        self, projected: Tensor, taps: Sequence[Tensor], point_weight: Tensor, point_bias: Tensor | None
    ) -> tuple[Tensor, Saved | None]:
        call, keeps = self.call, self.keeps
        query, z, gates = call.parts(projected)
        contexts, convolved = call.stack(projected), call.stack(projected) if keeps else None
        partial = empty(self.partial, dtype=float32, device=projected.device)
        for level, kernel in enumerate(self.kernels):
            kept = convolved[:, level] if keeps else None
            kernel(z, taps[level], kept, contexts[:, level], partial)
            z = contexts[:, level]
        partial = partial.sum(1) if self.joins else partial
        modulator = call.map(projected) if keeps or not self.in_one else None
        if self.in_one:
            mean, out = partial, call.map(projected)
            self.modulate(contexts, gates, mean, modulator, point_weight, point_bias, query, out)
        else:
            mean = empty((call.maps, call.channels), dtype=float32, device=projected.device) if keeps else None
            self.modulate(contexts, gates, partial, mean, modulator)
            out, _ = project(modulator, point_weight.T, query, point_bias)
        return out, Saved(modulator, contexts, convolved, mean) if keeps else None


class BackwardPlan:
    """The gradients of contexts, gates and depthwise kernels of a kind of call."""

    def __init__(self, call: Call):
        self.call = call
        lanes = min(128, triton.next_power_of_2(call.channels))
        blocks = -(-call.tokens // GATES_BLOCK)
        each = -(-blocks // (MOST_PARTS // 2)) if call.channels <= lanes else 1
        parts = -(-blocks // each)
        self.partial, self.joins = (call.maps, parts, call.channels), parts > MOST_PARTS
        spare = call.row - 2 * call.channels - call.levels - 1
        self.gates_kernel = BoundKernel(
            differentiate_gates,
            (parts, call.maps, 1),
            (call.stride, call.row, call.tokens, call.channels, call.factor),
            {
                "LEVELS": call.levels,
                "SPARE": spare,
                "WIDTH": triton.next_power_of_2(call.levels + 1 + spare),
                "BLOCK": GATES_BLOCK,
                "BLOCKS": each,
                "STAGES": GATES_STAGES,
                "CHANNELS": lanes,
            },
            maxnreg=GATES_REGISTERS,
            num_warps=4,
        )
        self.last_kernel = BoundKernel(
            differentiate_last,
            call.grid,
            (call.stride, call.tokens, call.channels, call.factor, 1 / call.tokens),
            {"LEVELS": call.levels, **_parts(1 if self.joins else parts), **call.tile},
            maxnreg=LAST_REGISTERS,
            num_warps=4,
        )
        self.level_kernels = [
            call.convolving(
                level,
                call.strips(level, LEVEL_COLUMNS),
                differentiate_level,
                differentiate_level_strips,
                (call.plain, call.stacked, *call.extent, call.factor),
                {"STEP": call.channels},
                {"LEVEL": level - 1, "GATES_STEP": call.stride},
            )
            for level in range(1, call.levels)
        ]
        self.input = Convolve(call.convolutions[0], call.plain, call.row_strides, flip=True)
        self.correlations = [
            Correlate(convolution, call.stacked if level else call.context, call.plain)
            for level, convolution in enumerate(call.convolutions)
        ]

    def __call__(
        self,
        dmodulator: Tensor,
        saved: Saved,
        projected: Tensor,
        dtypes: Sequence[dtype],
        taps: Sequence[Tensor],
        dprojected: Tensor,
    ) -> list[Tensor]:
        """Fill dprojected's gradients of contexts and gates, and zeros after these, given that of the gated sum.

        Returns the gradients of the depthwise kernels; one plan is for kernels of the same dtypes.
        """
        call, (_, contexts, convolved, mean) = self.call, saved
        (_, context, gates), (_, dcontext, dgates) = call.parts(projected), call.parts(dprojected)
        partial = empty(self.partial, dtype=float32, device=projected.device)
        self.gates_kernel(dmodulator, contexts, gates, mean, dgates, partial)
        d = call.map(projected)
        partial = partial.sum(1) if self.joins else partial
        self.last_kernel(dmodulator, gates, convolved, mean, partial, d)
        dweights = []
        for level in reversed(range(call.levels)):
            z = contexts[:, level - 1] if level else context
            dweights.insert(0, self.correlations[level](z, d, dtypes[level], dtypes[level])[0])
            if level:
                below = call.map(projected)
                self.level_kernels[level - 1](d, taps[level], dmodulator, gates, convolved[:, level - 1], below)
                d = below
        self.input(d, taps[0], None, None, dcontext)
        return dweights
