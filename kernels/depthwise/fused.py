"""Fused depthwise convolution in Triton: kernels of any odd size and dilation, on channels-last maps as they lie.

Serves float16, bfloat16 and float32 tensors on CUDA devices. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums
are taken in float32 in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..launch import Plans, on_device, readable, why_not
from .fused_gelu_plan import correlate_gelu as plan_gelu
from .fused_plan import Arrange, Call, Convolve, Correlate

LARGEST_KERNEL = 63
_plans = Plans()


def unsupported(direction: str, x: Tensor, weight: Tensor, *rest: object) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    if max(weight.shape[2:]) > LARGEST_KERNEL:
        return f"needs kernels of at most {LARGEST_KERNEL}, got {tuple(weight.shape[2:])}"
    return why_not(x)


def taps(weight: Tensor) -> Tensor:
    """Return weights [C, 1, KH, KW] as the kernels read them, [KH, KW, C] in float32."""
    return _plans(lambda: Arrange(weight), ("taps",), weight)(weight)[0]


def taps_of_both(first: Tensor, second: Tensor) -> list[Tensor]:
    """Return `taps` of two weights of equal channels, by one launch."""
    return _plans(lambda: Arrange(first, second), ("taps",), first, second)(first, second)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: Sequence[int],
    more: Tensor | None = None,
    flip: bool = False,
    epilogue: str = "",
    inner: Tensor | None = None,
    arranged: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor:
    """Return the convolution, with `flip` by the kernel turned round, after an `epilogue` that `finish` has.

    By default that adds `more` if it is given, and goes back through the GELU that `inner`, if given too, went into.

    Args:
        arranged: what `taps` makes of `weight`, where it is known.
        totals: [C], to be filled with the sums of what is returned.
    """
    epilogue = epilogue or ("" if more is None else "add" if inner is None else "add_slope")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        if totals is not None:
            totals.zero_()
        return out
    kernel = tuple(weight.shape[2:])
    plan = _plans(
        lambda: Convolve(
            Call(x.shape, kernel, dilation, x, out),
            x.stride(),
            out.stride(),
            bias is not None,
            None if more is None else more.stride(),
            flip,
            epilogue,
            None if inner is None else inner.stride(),
            totals is not None,
        ),
        (tuple(dilation), kernel, flip, epilogue),
        *(x, bias, more, inner, totals),
    )
    plan(x, taps(weight) if arranged is None else arranged, bias, more, out, inner, totals)
    return out


def correlate(
    x: Tensor, dout: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weight and bias, given that of the output."""
    if not x.numel():
        return torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    kernel = tuple(weight.shape[2:])
    plan = _plans(
        lambda: Correlate(Call(x.shape, kernel, dilation, x, dout), x.stride(), dout.stride()),
        (tuple(dilation), kernel),
        *(x, dout, weight, bias),
    )
    dweight, dbias = plan(x, dout, weight.dtype, weight.dtype if bias is None else bias.dtype)
    return dweight, None if bias is None else dbias


def correlate_gelu(
    x: Tensor, dout: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int], arranged: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of what goes into the GELU, weight and bias, given that of the output.

    What goes into the GELU is convolved again, which reads no more than reading it back would.

    Args:
        arranged: what `taps` makes of `weight`.
    """
    dsums = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dsums, *correlate(x, dout, weight, bias, dilation)
    kernel = tuple(weight.shape[2:])
    plan = _plans(
        lambda: plan_gelu(
            Call(x.shape, kernel, dilation, x, dout), x.stride(), dout.stride(), dsums.stride(), bias is not None
        ),
        ("gelu", tuple(dilation), kernel),
        *(x, dout, weight, bias),
    )
    dweight, dbias = plan(x, arranged, bias, dout, dsums, weight.dtype, weight.dtype if bias is None else bias.dtype)
    return dsums, dweight, None if bias is None else dbias


@on_device
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
    x = readable(x)
    more = x if residual else None if add is None else readable(add)
    epilogue = "_".join(filter(None, (activation, None if more is None else "add")))
    return convolve(x, weight, bias, dilation, more, epilogue=epilogue)


@on_device
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
    x, dout, arranged = readable(x), readable(dout), taps(weight)
    if activation:
        dsums, dweight, dbias = correlate_gelu(x, dout, weight, bias, dilation, arranged)
    else:
        dsums, (dweight, dbias) = dout, correlate(x, dout, weight, bias, dilation)
    dx = convolve(
        dsums, weight, None, dilation, dout if residual else None, flip=True, arranged=arranged, totals=totals
    )
    return dx, dweight, dbias
