"""Dynamic depthwise convolution sample by sample, so that torch's convolutions read channels-last maps as they are."""

from torch import Tensor

from ..depthwise import blocked as depthwise

UNDILATED = (1, 1)


def unsupported(direction: str, x: Tensor, weight: Tensor) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    return None if x.device.type == "cpu" else f"it is for CPUs, the tensors are on {x.device.type}"


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """Return the output [B, H, W, C] in the dtype of x."""
    out = x.new_empty(x.shape)
    for sample, kernels in enumerate(weight.unsqueeze(2)):
        out[sample] = depthwise.forward(x[sample : sample + 1], kernels, None, UNDILATED)[0]
    return out


def backward(dout: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight, given that of the output."""
    dx, dweight = x.new_empty(x.shape), weight.new_empty(weight.shape)
    for sample, kernels in enumerate(weight.unsqueeze(2)):
        part = slice(sample, sample + 1)
        dmap, dkernels, _ = depthwise.backward(dout[part], x[part], kernels, None, UNDILATED)
        dx[sample], dweight[sample] = dmap[0], dkernels[:, 0]
    return dx, dweight
