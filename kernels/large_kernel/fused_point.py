"""The pointwise convolution of maps [B, H, W, C] and its gradients, fused in Triton with the products around it."""

import torch
from torch import Tensor

from ..launch import Plans
from .fused_plan import DifferentiatePoint, DifferentiateWeight, Project, whole

_plans = Plans()


def project(
    a: Tensor,
    weight: Tensor,
    gate: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (a weight + bias) * gate; and other * gate, as rows, if there is another.

    Args:
        a, gate, other, out: maps whose tokens lie at equal distances; `out`, if given, is filled.
    """
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
    rows, gate, other, filled = (None if x is None else x.flatten(0, 2) for x in (a, gate, other, out))
    gated = None if other is None else torch.empty(rows.shape, dtype=a.dtype, device=a.device)
    if out.numel():
        tensors = (weight, bias, gate, other, filled)
        plan = _plans(
            lambda: Project(rows, weight, bias is not None, gate, other, filled), ("project",), rows, *tensors
        )
        plan(rows, *tensors, gated)
    return out, gated


def differentiate(
    dout: Tensor, gate: Tensor, spatial: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of gate, spatial, weight and bias of `project(spatial, weight.T, gate, bias)`.

    Args:
        dout, gate, spatial, out: maps whose tokens lie at equal distances; `out`, if given, is filled with the first.
    """
    if not dout.numel():
        out = torch.empty_like(dout) if out is None else out
        return out, torch.empty_like(dout), torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    if not whole(dout):
        dgate, dpoint = project(spatial, weight.T, dout, bias, other=gate, out=out)
        # Plain products are cuBLAS's.
        dspatial = (dpoint @ weight.to(dpoint.dtype)).view(dout.shape)
        return dgate, dspatial, *_differentiate_weight(dpoint, spatial, weight, bias)
    dgate = torch.empty(dout.shape, dtype=dout.dtype, device=dout.device) if out is None else out
    rows = [x.flatten(0, 2) for x in (dout, gate, spatial)]
    tensors = (*rows, weight, bias, dgate.flatten(0, 2))
    plan = _plans(lambda: DifferentiatePoint(*tensors), ("all",), *tensors)
    dspatial, dweight, dbias = plan(*tensors)
    return dgate, dspatial.view(dout.shape), dweight, None if bias is None else dbias


def _differentiate_weight(
    dpoint: Tensor, spatial: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weight and bias, given that of the product with them as rows and the input as a map."""
    rows = (dpoint, spatial.flatten(0, 2))
    plan = _plans(lambda: DifferentiateWeight(*rows), ("weight",), *rows, weight, bias)
    dweight, dbias = plan(*rows, weight.dtype, weight.dtype if bias is None else bias.dtype)
    return dweight, None if bias is None else dbias
