"""From a kind of call to bound kernels of the gradients of depthwise convolution with GELU."""

from torch import Tensor, dtype

from ..launch import BoundKernel
from .fused_gelu_strips import correlate_gelu_strips
from .fused_plan import Call, Convolve, Correlate, Gradients, Strides

PROGRAMS = 3168  # to aim for: 24 for each of 132 multiprocessors, twice as many as run at a time
REGISTERS = 168  # of a thread, which let so many run at a time
MOST_TAPS = 9  # that a thread holds with their gradients and the inputs that they meet


class OnePass:
    """Gradients of what goes into the GELU, of the weights and of the bias, of a kind of call by strips."""

    def __init__(self, call: Call, x: Strides, dout: Strides, dsums: Strides, biased: bool):
        strips = call.strips
        each = strips.each(PROGRAMS)
        programs = -(-strips.count // each)
        self.kernel = BoundKernel(
            correlate_gelu_strips,
            (programs, strips.blocks, 1),
            (x[:3], dout[:3], dsums[:3], *call.extent, strips.rows, strips.count, each),
            {
                **{"FULL_KH": call.kernel[0], "FULL_KW": call.kernel[1]},
                **strips.sizes,
                **strips.steps(X=x, DOUT=dout, DSUMS=dsums),
                **{"OVERLAP": strips.overlap, "HAS_BIAS": biased},
            },
            maxnreg=REGISTERS,
            num_warps=1,
        )
        self.gradients = Gradients(call, programs, call.used)

    def __call__(self, x: Tensor, taps: Tensor, bias: Tensor | None, dout: Tensor, dsums: Tensor, *dtypes: dtype):
        """Fill `dsums`, and return the gradients of weights and bias, in these dtypes."""
        partial = self.gradients.partial(x)
        self.kernel(x, taps, bias, dout, dsums, partial)
        return self.gradients(partial, *dtypes)


class TwoPasses:
    """What `OnePass` does, for any kernel."""

    def __init__(self, call: Call, x: Strides, dout: Strides, dsums: Strides, biased: bool):
        self.slope = Convolve(call, x, dsums, biased, dout, epilogue="slope")
        self.correlate = Correlate(call, x, dsums)

    def __call__(self, x: Tensor, taps: Tensor, bias: Tensor | None, dout: Tensor, dsums: Tensor, *dtypes: dtype):
        self.slope(x, taps, bias, dout, dsums)
        return self.correlate(x, dsums, *dtypes)


def correlate_gelu(call: Call, *arguments) -> OnePass | TwoPasses:
    few = call.strips is not None and call.used[0] * call.used[1] <= MOST_TAPS
    return (OnePass if few else TwoPasses)(call, *arguments)
