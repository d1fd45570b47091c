"""From a kind of call to bound kernels of the pointwise convolution: blocks, and how the tokens are shared out."""

import triton
from torch import Tensor, bfloat16, dtype, empty, float32

from ..depthwise.fused_plan import Settle
from ..fused_rows import PRODUCTS
from ..launch import BoundKernel, split
from .fused_kernels import differentiate_point, differentiate_weight, project

WIDE = {"num_warps": 4, "num_stages": 3}  # of 64 tokens by 128 channels
NARROW = {"num_warps": 4, "num_stages": 3, "maxnreg": 168}  # of 128 tokens by fewer channels
POINT_BLOCK = 64  # tokens that `differentiate_point` takes at a time
MOST_WHOLE = 128  # channels up to which one kernel makes all gradients; half of them in float16
PROGRAMS = 264  # to aim for where tokens can be shared out: 2 for each of 132 multiprocessors


def _columns(x: Tensor, most: int) -> int:
    return max(16, min(64 if x.dtype == float32 else most, triton.next_power_of_2(x.shape[-1])))


class Project:
    """(a W + bias) * gate, and other * gate if there is another."""

    def __init__(self, a: Tensor, weight: Tensor, biased: bool, gate: Tensor, other: Tensor | None, out: Tensor):
        tokens, channels = a.shape
        columns = _columns(a, 128)
        block = 64 if a.dtype == float32 or columns == 128 else 128
        self.kernel = BoundKernel(
            project,
            (-(-channels // columns), -(-tokens // block), 1),
            (
                tokens,
                channels,
                a.stride(0),
                gate.stride(0),
                0 if other is None else other.stride(0),
                out.stride(0),
                weight.stride(),
            ),
            {
                "BLOCK": block,
                "COLUMNS": columns,
                "DEPTH": _columns(a, 64),
                "HAS_BIAS": biased,
                "HAS_OTHER": other is not None,
                "PRODUCT": PRODUCTS[a.dtype],
            },
            **(WIDE if columns == 128 else NARROW),
        )

    def __call__(
        self,
        a: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gate: Tensor,
        other: Tensor | None,
        out: Tensor,
        gated: Tensor | None,
    ) -> None:
        self.kernel(a, weight, bias, gate, other, out, gated)


def whole(x: Tensor) -> bool:
    """Return whether one kernel makes all gradients for maps like `x`."""
    most = MOST_WHOLE if x.dtype == bfloat16 else MOST_WHOLE // 2
    return x.dtype != float32 and x.shape[-1] <= most


class DifferentiatePoint:
    """All gradients of the pointwise convolution and its gate, for few channels."""

    def __init__(self, dout: Tensor, gate: Tensor, spatial: Tensor, weight: Tensor, bias: Tensor | None, dgate: Tensor):
        tokens, channels = dout.shape
        columns = max(16, triton.next_power_of_2(channels))
        few = columns <= 64
        blocks = -(-tokens // POINT_BLOCK)
        programs = min(blocks, PROGRAMS if few else PROGRAMS // 2)
        self.settle = Settle(programs, channels, (1, channels), (1, channels), (channels, 1))
        self.kernel = BoundKernel(
            differentiate_point,
            (programs, 1, 1),
            (tokens, channels, blocks, *(x.stride(0) for x in (dout, gate, spatial, dgate)), weight.stride()),
            {
                "BLOCK": POINT_BLOCK,
                "COLUMNS": columns,
                "HAS_BIAS": bias is not None,
                "PRODUCT": PRODUCTS[dout.dtype],
                "STAGES": 2,
            },
            # Two programs fit a multiprocessor where channels are few.
            maxnreg=128 if few else None,
            num_warps=8,
        )

    def __call__(
        self, dout: Tensor, gate: Tensor, spatial: Tensor, weight: Tensor, bias: Tensor | None, dgate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fill dgate; return the gradients of spatial as rows, of weight, and of bias."""
        partial = self.settle.partial(dout)
        dspatial = empty(dout.shape, dtype=dout.dtype, device=dout.device)
        self.kernel(dout, gate, spatial, weight, bias, dgate, dspatial, partial)
        dweight = empty(weight.shape, dtype=weight.dtype, device=dout.device)
        dbias = empty(weight.shape[:1], dtype=(weight if bias is None else bias).dtype, device=dout.device)
        self.settle(partial, dweight, dbias)
        return dspatial, dweight, dbias


class DifferentiateWeight:
    """Gradients of the pointwise weight and bias."""

    def __init__(self, dgate: Tensor, spatial: Tensor):
        tokens, channels = dgate.shape
        columns = _columns(dgate, 128)
        blocks = -(-channels // columns)
        block = 32 if dgate.dtype == float32 else 64
        programs, each = split(tokens, block, blocks**2, PROGRAMS)
        self.settle = Settle(programs, channels, (1, channels), (1, channels), (channels, 1))
        self.shape = (channels, channels)
        self.kernel = BoundKernel(
            differentiate_weight,
            (blocks, blocks, programs),
            (tokens, channels, dgate.stride(0), spatial.stride(0), each),
            {"BLOCK": block, "COLUMNS": columns, "PRODUCT": PRODUCTS[dgate.dtype]},
            num_warps=8 if columns == 128 else 4,
            num_stages=3,
        )

    def __call__(self, dgate: Tensor, spatial: Tensor, weight_dtype: dtype, bias_dtype: dtype) -> tuple[Tensor, Tensor]:
        """Return both gradients; one plan is for one pair of dtypes."""
        partial = self.settle.partial(dgate)
        self.kernel(dgate, spatial, partial)
        dweight = empty(self.shape, dtype=weight_dtype, device=dgate.device)
        dbias = empty(self.shape[:1], dtype=bias_dtype, device=dgate.device)
        self.settle(partial, dweight, dbias)
        return dweight, dbias
