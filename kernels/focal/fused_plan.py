"""From a kind of call to bound kernels: tiles of the map, blocks of tokens, and the launches."""

from collections.abc import Sequence

from torch import Tensor, empty, float32, ops

from ..depthwise.fused_plan import Call as Convolution
from ..depthwise.fused_plan import Convolve, Correlate, lanes_of
from ..launch import BoundKernel
from .fused_kernels import differentiate_gates, differentiate_last, differentiate_level, focus, gather

BLOCK = 64


class Call:
    """A kind of call: the context [B, H, W, C], its strides, and the kernel size of each level."""

    def __init__(self, context: Tensor, gates: Tensor, kernels: Sequence[int], normalize: bool, *more: Tensor):
        self.maps, self.height, self.width, self.channels = context.shape
        self.tokens = self.height * self.width
        self.levels, self.kernels = len(kernels), kernels
        self.dtype, self.context, self.gates_stride = context.dtype, context.stride()[:3], gates.stride(2)
        self.factor = 1 / (self.levels + 1) if normalize else 1.0
        self.plain = (self.tokens * self.channels, self.width * self.channels, self.channels)
        self.convolutions = [Convolution(context.shape, (k, k), (1, 1), context, *more) for k in kernels]
        lanes = lanes_of(self.channels)
        self.blocks = {"BLOCK": BLOCK, "CHANNELS": lanes}
        self.grid = (-(-self.channels // lanes), -(-self.tokens // BLOCK), self.maps)
        self.extent = (self.height, self.width, self.channels)

    def contexts(self, like: Tensor) -> Tensor:
        return empty(
            (self.levels, self.maps, self.height, self.width, self.channels), dtype=self.dtype, device=like.device
        )


class Contexts:
    """The contexts of all levels and the mean of the last; with `keeps` also what goes into the GELUs."""

    def __init__(self, call: Call, keeps: bool):
        self.call, self.keeps = call, keeps
        self.kernels = []
        for level, convolution in enumerate(call.convolutions):
            self.kernels.append(
                BoundKernel(
                    focus,
                    (convolution.tiles, convolution.blocks, 1),
                    (call.plain if level else call.context, call.plain, *call.extent),
                    {**convolution.sizes, "KEEPS": keeps, "SUMS": level + 1 == call.levels},
                    **convolution.options,
                )
            )

    def __call__(self, context: Tensor, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
        call = self.call
        contexts = call.contexts(context)
        convolved = call.contexts(context) if self.keeps else None
        tiles = call.convolutions[-1].tiles
        partial = empty((call.maps, tiles // call.maps, call.channels), dtype=float32, device=context.device)
        z = context
        for level, kernel in enumerate(self.kernels):
            kept = None if convolved is None else convolved[level]
            kernel(z, taps[level], kept, contexts[level], partial)
            z = contexts[level]
        return contexts, convolved, partial.sum(1) / call.tokens


class ForwardPlan:
    """The modulator of a kind of call."""

    def __init__(self, call: Call):
        self.contexts = Contexts(call, keeps=False)
        self.kernel = BoundKernel(
            gather,
            call.grid,
            (call.gates_stride, call.tokens, call.maps, call.channels, call.factor),
            {"LEVELS": call.levels, **call.blocks},
            num_warps=4,
        )

    def __call__(self, context: Tensor, gates: Tensor, taps: Sequence[Tensor], out: Tensor) -> None:
        contexts, _, mean = self.contexts(context, taps)
        self.kernel(contexts, gates, mean, out)


class BackwardPlan:
    """All gradients of a kind of call."""

    def __init__(self, call: Call, dout: Tensor):
        self.call, self.contexts = call, Contexts(call, keeps=True)
        self.partial = (call.maps, call.grid[1], call.channels)
        rows = (dout.stride(2), call.gates_stride, call.tokens)
        self.gates_kernel = BoundKernel(
            differentiate_gates,
            (call.grid[1], call.maps, 1),
            (*rows, call.maps, call.channels, call.factor),
            {"LEVELS": call.levels, **call.blocks},
            num_warps=4,
        )
        self.last_kernel = BoundKernel(
            differentiate_last,
            call.grid,
            (*rows, call.channels, call.factor),
            {"LEVEL": call.levels - 1, **call.blocks},
            num_warps=4,
        )
        self.level_kernels = [
            BoundKernel(
                differentiate_level,
                (convolution.tiles, convolution.blocks, 1),
                (call.plain, dout.stride()[:3], call.gates_stride, *call.extent, call.factor),
                {"LEVEL": level, **convolution.sizes},
                **convolution.options,
            )
            for level, convolution in enumerate(call.convolutions[1:])
        ]
        self.input = Convolve(call.convolutions[0], call.plain, call.plain, flip=True)
        self.correlations = [
            Correlate(convolution, call.plain if level else call.context, call.plain)
            for level, convolution in enumerate(call.convolutions)
        ]

    def __call__(
        self, dout: Tensor, context: Tensor, gates: Tensor, taps: Sequence[Tensor], dcontext: Tensor, dgates: Tensor
    ) -> list[Tensor]:
        """Fill the gradients of context and gates, and return those of the weights, [C, 1, k, k] in float32."""
        call = self.call
        contexts, convolved, mean = self.contexts(context, taps)
        partial = empty(self.partial, dtype=float32, device=context.device)
        self.gates_kernel(dout, contexts, gates, mean, dgates, partial)
        dmean = ops.aten.gelu_backward(partial.sum(1), mean) / call.tokens
        d = empty(context.shape, dtype=call.dtype, device=context.device)
        self.last_kernel(dout, gates, convolved[-1], dmean, d)
        dweights = []
        for level in reversed(range(call.levels)):
            dweights.insert(0, self.correlations[level](contexts[level - 1] if level else context, d)[0])
            if level:
                below = empty(context.shape, dtype=call.dtype, device=context.device)
                self.level_kernels[level - 1](d, taps[level], dout, gates, convolved[level - 1], below)
                d = below
        self.input(d, taps[0], None, None, dcontext)
        return dweights
