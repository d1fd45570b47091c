"""Linear attention as its definition reads: reduce keys and values to a small state, apply it to every query.

Runs on any device and dtype, and computes in at least float32. This file is the specification that other backends are
tested against.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .feature_maps import FEATURE_MAPS, NORMALIZERS

HALF_MAX = torch.finfo(torch.float16).max


class Form(NamedTuple):
    """What kind of linear attention: see `linear_attention`."""

    query_map: str
    key_map: str
    normalizer: str
    scale: float
    mean: bool
    power: float
    eps: float


def unsupported(direction: str, *call) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def widen(x: Tensor) -> Tensor:
    """Return a tensor in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype; what float16 cannot hold becomes its largest number instead of infinity."""
    return (x.clamp(-HALF_MAX, HALF_MAX) if dtype == torch.float16 else x).to(dtype)


def rotate(features: Tensor, rotary: Tensor | None) -> Tensor:
    """Turn each pair of neighbouring channels by its token's angle.

    Args:
        features: [B, N, heads, D'].
        rotary: [2, N, D'], the cosines and the sines, equal for both channels of a pair; None leaves them as they are.
    """
    if rotary is None:
        return features
    cos, sin = rotary.to(features.dtype).unsqueeze(-2)
    even, odd = features[..., ::2], features[..., 1::2]
    return features * cos + torch.stack((-odd, even), -1).flatten(-2) * sin


def reduce(
    k: Tensor, v: Tensor, weight: Tensor | None, parameter: Tensor | None, rotary: Tensor | None, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the state [B, heads, D', E], the keys' sum [B, heads, D'] and the values' mean [B, heads, E]."""
    k, v = widen(k), widen(v)
    features = FEATURE_MAPS[form.key_map](k, parameter, form.power)
    if weight is not None:
        features = features * weight.to(features.dtype).unsqueeze(-1)
    factor = form.scale / (k.shape[1] if form.mean else 1)
    state = torch.einsum("bmhd,bmhe->bhde", rotate(features, rotary), v) * factor
    return state, features.sum(1) * factor, v.mean(1)


def apply(
    q: Tensor,
    state: Tensor,
    total: Tensor,
    average: Tensor,
    parameter: Tensor | None,
    rotary: Tensor | None,
    form: Form,
) -> Tensor:
    """Return what the queries make of the reduced keys and values, [B, N, heads, E] in at least float32."""
    features = FEATURE_MAPS[form.query_map](widen(q), parameter, form.power)
    out = torch.einsum("bnhd,bhde->bnhe", rotate(features, rotary), state)
    if form.normalizer == "none":
        return out
    alpha, beta = NORMALIZERS[form.normalizer](torch.einsum("bnhd,bhd->bnh", features, total), form.eps)
    if alpha is not None:
        out = out * alpha.unsqueeze(-1)
    if beta is not None:
        out = torch.addcmul(out, beta.unsqueeze(-1), average.unsqueeze(1))
    return out


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_weight: Tensor | None,
    query_parameter: Tensor | None,
    key_parameter: Tensor | None,
    query_rotary: Tensor | None,
    key_rotary: Tensor | None,
    form: Form,
) -> Tensor:
    """Return the output [B, N, heads, E] in the dtype of v."""
    reduced = reduce(k, v, key_weight, key_parameter, key_rotary, form)
    return narrow(apply(q, *reduced, query_parameter, query_rotary, form), v.dtype)
