"""Linear attention as its definition reads: reduce keys and values to a small state, apply it to every query.

Runs on any device and dtype, and computes in at least float32. This file is the specification that other backends are
tested against. Features are not kept for the gradient but computed again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import narrow, widen
from .feature_maps import FEATURE_MAPS, NORMALIZERS


class Form(NamedTuple):
    """What kind of linear attention; see `linear_attention`."""

    query_map: str
    key_map: str
    normalizer: str
    scale: float
    mean: bool
    power: float
    eps: float


class State(NamedTuple):
    """What queries read: S [B, heads, D', E], s [B, heads, D'] and m [B, heads, E]."""

    pairs: Tensor
    keys: Tensor
    values: Tensor


def unsupported(direction: str, tensors: Sequence[Tensor | None], form: Form) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def _quarter_turn(x: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels (a, b) to (-b, a)."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def rotate(features: Tensor, rotary: Tensor | None) -> Tensor:
    """Turn each pair of neighbouring channels by its token's angle.

    Args:
        features: [B, N, heads, D'].
        rotary: [2, N, D'], the cosines and the sines, equal for both channels of a pair; None leaves them as they are.
    """
    if rotary is None:
        return features
    cos, sin = rotary.to(features.dtype).unsqueeze(-2)
    return features * cos + _quarter_turn(features) * sin


def rotate_backward(
    dturned: Tensor, features: Tensor, rotary: Tensor | None, needed: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of features and, if it is needed, of the angles, given that of the turned features."""
    if rotary is None:
        return dturned, None
    cos, sin = rotary.to(dturned.dtype).unsqueeze(-2)
    dfeatures = dturned * cos - _quarter_turn(dturned * sin)
    if not needed:
        return dfeatures, None
    return dfeatures, torch.stack([(dturned * x).sum((0, 2)) for x in (features, _quarter_turn(features))])


def reduce(
    k: Tensor, v: Tensor, weight: Tensor | None, parameter: Tensor | None, rotary: Tensor | None, form: Form
) -> State:
    """Return the sums over tokens of psi(k) v^T, of the unrotated psi0(k) and of v, in at least float32."""
    features = FEATURE_MAPS[form.key_map](widen(k), parameter, form.power)[0]
    if weight is not None:
        features = features * widen(weight).unsqueeze(-1)
    v = widen(v)
    pairs = torch.einsum("bmhd,bmhe->bhde", rotate(features, rotary), v)
    return State(pairs, features.sum(1), v.sum(1))


def reduce_backward(
    dsums: State,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    parameter: Tensor | None,
    rotary: Tensor | None,
    rotary_needed: bool,
    form: Form,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the tensors that `reduce` takes, in at least float32."""
    features, pullback = FEATURE_MAPS[form.key_map](widen(k), parameter, form.power)
    factor = None if weight is None else widen(weight).unsqueeze(-1)
    weighted = features if factor is None else features * factor
    dv = torch.einsum("bmhd,bhde->bmhe", rotate(weighted, rotary), dsums.pairs) + dsums.values.unsqueeze(1)
    dturned = torch.einsum("bmhe,bhde->bmhd", widen(v), dsums.pairs)
    dweighted, drotary = rotate_backward(dturned, weighted, rotary, rotary_needed)
    dweighted = dweighted + dsums.keys.unsqueeze(1)
    dk, dparameter = pullback(dweighted if factor is None else dweighted * factor)
    return dk, dv, None if factor is None else (dweighted * features).sum(-1), dparameter, drotary


def settle(sums: State, tokens: int, form: Form) -> State:
    """Return the state from the sums over so many tokens; gradients go back the same way."""
    factor = form.scale / tokens if form.mean else form.scale
    return State(sums.pairs * factor, sums.keys * factor, sums.values / tokens)


def apply(q: Tensor, state: State, parameter: Tensor | None, rotary: Tensor | None, form: Form) -> Tensor:
    """Return alpha(t) phi(q)^T S + beta(t) m with t = phi0(q) . s, [B, N, heads, E] in at least float32."""
    features = FEATURE_MAPS[form.query_map](widen(q), parameter, form.power)[0]
    out = torch.einsum("bnhd,bhde->bnhe", rotate(features, rotary), state.pairs)
    t = torch.einsum("bnhd,bhd->bnh", features, state.keys)
    alpha, beta, _ = NORMALIZERS[form.normalizer](t, form.eps)
    if alpha is not None:
        out *= alpha.unsqueeze(-1)
    if beta is not None:
        out.addcmul_(beta.unsqueeze(-1), state.values.unsqueeze(1))
    return out


def apply_backward(
    dout: Tensor,
    q: Tensor,
    state: State,
    parameter: Tensor | None,
    rotary: Tensor | None,
    rotary_needed: bool,
    form: Form,
) -> tuple[Tensor, State, Tensor | None, Tensor | None]:
    """Return the gradients of the tensors that `apply` takes, in at least float32."""
    features, pullback = FEATURE_MAPS[form.query_map](widen(q), parameter, form.power)
    turned = rotate(features, rotary)
    t = torch.einsum("bnhd,bhd->bnh", features, state.keys)
    alpha, beta, to_t = NORMALIZERS[form.normalizer](t, form.eps)
    dout = widen(dout)
    dturned = torch.einsum("bnhe,bhde->bnhd", dout, state.pairs)
    dalpha = None if alpha is None else (turned * dturned).sum(-1)
    dbeta = None if beta is None else torch.einsum("bnhe,bhe->bnh", dout, state.values)
    dt = to_t((dalpha, dbeta))
    if alpha is not None:
        turned, dturned = turned * alpha.unsqueeze(-1), dturned * alpha.unsqueeze(-1)
    dpairs = torch.einsum("bnhd,bnhe->bhde", turned, dout)
    dvalues = torch.zeros_like(state.values) if beta is None else torch.einsum("bnh,bnhe->bhe", beta, dout)
    dstate = State(dpairs, torch.einsum("bnh,bnhd->bhd", dt, features), dvalues)
    dfeatures, drotary = rotate_backward(dturned, features, rotary, rotary_needed)
    dq, dparameter = pullback(torch.addcmul(dfeatures, dt.unsqueeze(-1), state.keys.unsqueeze(1)))
    return dq, dstate, dparameter, drotary


def saved_shapes(tensors: Sequence[Tensor | None], form: Form) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of what `forward` returns after the output, for `backward`: nothing."""
    return ()


def forward(tensors: Sequence[Tensor | None], form: Form) -> tuple[Tensor, ...]:
    """Return the output [B, N, heads, E] in the dtype of v, then up to four float32 tensors that `backward` can use.

    Args:
        tensors: q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary.
    """
    q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary = tensors
    state = settle(reduce(k, v, key_weight, key_parameter, key_rotary, form), k.shape[1], form)
    return (narrow(apply(q, state, query_parameter, query_rotary, form), v.dtype).contiguous(),)


def backward(
    dout: Tensor,
    tensors: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    needed: Sequence[bool],
    form: Form,
) -> list[Tensor | None]:
    """Return the gradients of those `tensors` that are given and needed, None for the others."""
    q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary = tensors
    reduced = (k, v, key_weight, key_parameter, key_rotary)
    state = settle(reduce(*reduced, form), k.shape[1], form)
    dq, dstate, dquery_parameter, dquery_rotary = apply_backward(
        dout, q, state, query_parameter, query_rotary, needed[6], form
    )
    dsums = settle(dstate, k.shape[1], form)
    dk, dv, dkey_weight, dkey_parameter, dkey_rotary = reduce_backward(dsums, *reduced, needed[7], form)
    gradients = (dq, dk, dv, dkey_weight, dquery_parameter, dkey_parameter, dquery_rotary, dkey_rotary)
    return narrow_all(gradients, tensors, needed)


def narrow_all(
    gradients: Sequence[Tensor | None], tensors: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return those gradients that are needed, in the dtypes of their tensors."""
    return [
        narrow(gradient, x.dtype).contiguous() if need and gradient is not None else None
        for gradient, x, need in zip(gradients, tensors, needed, strict=True)
    ]
