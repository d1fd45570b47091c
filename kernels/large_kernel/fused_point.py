"""The pointwise convolution of maps [B, H, W, C] and its gradients, fused in Triton with the products around it."""

import torch
from torch import Tensor

from ..launch import Plans
from .fused_plan import DifferentiatePoint, DifferentiateWeight, Project, whole

_plans = Plans()


def project(
    a: Tensor,
    weight: Tensor,
    times: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (a * times) weight + bias, all times `gate`; and a * times, as rows, if there is `times`.

    Args:
        a, times, gate, out: maps whose tokens lie at equal distances; `out`, if given, is filled.
    """
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
    rows, times, gate, filled = (None if x is None else x.flatten(0, 2) for x in (a, times, gate, out))
    product = None if times is None else torch.empty(rows.shape, dtype=a.dtype, device=a.device)
    if out.numel():
        plan = _plans(
            lambda: Project(rows, times, weight, bias is not None, gate, filled),
            ("project",),
            *(rows, times, weight, bias, gate, filled),
        )
        plan(rows, times, weight, bias, gate, filled, product)
    return out, product


def differentiate(
    dout: Tensor, gate: Tensor, spatial: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of gate, spatial, weight and bias of `project(spatial, weight.T, bias=bias, gate=gate)`.

    Args:
        dout, gate, spatial, out: maps whose tokens lie at equal distances; `out`, if given, is filled with the first.
    """
    if not dout.numel():
        out = torch.empty_like(dout) if out is None else out
        return out, torch.empty_like(dout), torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    if not whole(dout):
        dgate, _ = project(spatial, weight.T, bias=bias, gate=dout, out=out)
        dspatial, dpoint = project(dout, weight, times=gate)
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
