"""From a kind of call to bound kernels of the gradients of depthwise convolution with GELU."""

from collections.abc import Sequence

from torch import Tensor, dtype

from ..launch import BoundKernel
from .fused_gelu_strips import correlate_gelu_strips
from .fused_plan import Call, Convolve, Correlate, Strides, Strips, Total

PROGRAMS = 1584  # to aim for: 12 for each of 132 multiprocessors
REGISTERS = 168  # of a thread, which let so many run at a time
MOST_TAPS = 9  # that a thread holds with their gradients and the inputs that they meet


def _each(strips: Strips) -> int:
    """Return how many strips a program takes, for the fewest in turn."""
    least = max(1, strips.count * strips.blocks // PROGRAMS)
    return min(least, least + 1, key=lambda each: -(-(-(-strips.count // each) * strips.blocks) // PROGRAMS) * each)


class OnePass:
    """Gradients of what goes into the GELU, of the weights and of the bias, of a kind of call by strips."""

    def __init__(self, call: Call, x: Strides, dout: Strides, dsums: Strides, biased: bool):
        strips = call.strips
        each = _each(strips)
        programs = -(-strips.count // each)
        names = ("KH", "KW", "COLUMNS", "WHOLE", "CHANNELS", "EVEN")
        self.kernel = BoundKernel(
            correlate_gelu_strips,
            (programs, strips.blocks, 1),
            (x[:2], dout[:2], dsums[:2], *call.extent[:3], strips.rows, strips.count, each),
            {
                **{"X_STEP": x[2], "DOUT_STEP": dout[2], "DSUMS_STEP": dsums[2]},
                **{"FULL_KH": call.kernel[0], "FULL_KW": call.kernel[1]},
                **{name: strips.sizes[name] for name in names},
                "HAS_BIAS": biased,
            },
            maxnreg=REGISTERS,
            num_warps=1,
        )
        self.total = Total(call, programs, call.used)

    def __call__(
        self,
        x: Tensor,
        taps: Tensor,
        bias: Tensor | None,
        dout: Tensor,
        dsums: Tensor,
        weight_dtype: dtype,
        bias_dtype: dtype,
    ) -> tuple[Tensor, Tensor]:
        """Fill `dsums`, and return the gradients of weights and bias as `Correlate` does."""
        partial = self.total.partial(x)
        self.kernel(x, taps, bias, dout, dsums, partial)
        return self.total(partial, weight_dtype, bias_dtype)


class TwoPasses:
    """What `OnePass` does, for any kernel and dilation."""

    def __init__(self, call: Call, x: Strides, dout: Strides, dsums: Strides, biased: bool):
        self.slope = Convolve(call, x, dsums, biased, dout, epilogue="slope")
        self.correlate = Correlate(call, x, dsums)

    def __call__(
        self,
        x: Tensor,
        taps: Tensor,
        bias: Tensor | None,
        dout: Tensor,
        dsums: Tensor,
        weight_dtype: dtype,
        bias_dtype: dtype,
    ) -> tuple[Tensor, Tensor]:
        self.slope(x, taps, bias, dout, dsums)
        return self.correlate(x, dsums, weight_dtype, bias_dtype)


def correlate_gelu(call: Call, dilation: Sequence[int], *arguments) -> OnePass | TwoPasses:
    few = call.strips is not None and call.used[0] * call.used[1] <= MOST_TAPS
    return (OnePass if few and tuple(dilation) == (1, 1) else TwoPasses)(call, *arguments)
