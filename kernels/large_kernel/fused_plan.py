"""From a kind of call to bound kernels of the pointwise convolution: blocks, and how the tokens are shared out."""

import triton
from torch import Tensor, empty, float32

from ..fused_rows import PRODUCTS
from ..launch import BoundKernel
from .fused_kernels import differentiate_weight, project

PROGRAMS = 528  # to aim for where tokens can be shared out: 4 for each of 132 multiprocessors


def _columns(channels: int) -> int:
    return max(16, min(64, triton.next_power_of_2(channels)))


class Project:
    """(a * times) W + bias, all times `gate`; the first and the last factor may be None."""

    def __init__(self, a: Tensor, times: Tensor | None, weight: Tensor, biased: bool, gate: Tensor | None, out: Tensor):
        tokens, channels = a.shape
        block = 64 if a.dtype == float32 else 128
        self.kernel = BoundKernel(
            project,
            (-(-channels // _columns(channels)), -(-tokens // block), 1),
            (
                tokens,
                channels,
                a.stride(0),
                0 if times is None else times.stride(0),
                0 if gate is None else gate.stride(0),
                out.stride(0),
                weight.stride(),
            ),
            {
                "BLOCK": block,
                "COLUMNS": _columns(channels),
                "DEPTH": _columns(channels),
                "HAS_TIMES": times is not None,
                "HAS_BIAS": biased,
                "HAS_GATE": gate is not None,
                "PRODUCT": PRODUCTS[a.dtype],
            },
            num_warps=4,
            num_stages=3,
        )

    def __call__(
        self, a: Tensor, times: Tensor | None, weight: Tensor, bias: Tensor | None, gate: Tensor | None, out: Tensor
    ) -> None:
        self.kernel(a, times, weight, bias, gate, out)


class DifferentiateWeight:
    """Gradients of the pointwise weight and bias."""

    def __init__(self, dout: Tensor, x: Tensor, spatial: Tensor):
        tokens, channels = x.shape
        columns = _columns(channels)
        blocks = -(-channels // columns)
        block = 32 if x.dtype == float32 else 64
        each = -(-tokens // max(1, PROGRAMS // blocks**2))
        each = -(-each // block) * block
        programs = -(-tokens // each)
        self.partial, self.partial_bias = (programs, channels, channels), (programs, channels)
        self.kernel = BoundKernel(
            differentiate_weight,
            (blocks, blocks, programs),
            (tokens, channels, dout.stride(0), x.stride(0), spatial.stride(0), each),
            {"BLOCK": block, "COLUMNS": columns, "PRODUCT": PRODUCTS[x.dtype]},
            num_warps=4,
            num_stages=3,
        )

    def __call__(self, dout: Tensor, x: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """Return both gradients in float32."""
        partial, partial_bias = (
            empty(shape, dtype=float32, device=x.device) for shape in (self.partial, self.partial_bias)
        )
        self.kernel(dout, x, spatial, partial, partial_bias)
        return partial.sum(0), partial_bias.sum(0)
