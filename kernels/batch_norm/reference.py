"""Definition of batch normalisation in training and its gradient in plain tensor algebra; runs everywhere."""

import torch
from torch import Tensor

from ..precision import narrow, widen
from .gradient import dtype_of_dx


def unsupported(direction: str, *call: object) -> None:
    """Return None: the reference serves every call."""


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised map in `dtype`, and mean and variance [C]."""
    if not x.numel():
        return x.new_empty(x.shape, dtype=dtype), *(widen(x).new_zeros(x.shape[-1]) for _ in range(2))
    var, mean = torch.var_mean(widen(x).flatten(0, -2), dim=0, correction=0)
    out = (widen(x) - mean) * (var + eps).rsqrt() * widen(weight) + widen(bias)
    return narrow(out, dtype), mean, var


def backward(
    dout: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias, given that of the output."""
    scale = (var + eps).rsqrt()
    unit, dwide = ((widen(x) - mean) * scale).flatten(0, -2), widen(dout).flatten(0, -2)
    dbias, dweight = dwide.sum(0), (dwide * unit).sum(0)
    dx = (dwide - (dbias + unit * dweight) / len(unit)) * (scale * widen(weight))
    return narrow(dx, dtype_of_dx(dout, x)).view(x.shape), narrow(dweight, weight.dtype), narrow(dbias, bias.dtype)
