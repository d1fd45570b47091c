"""Linear attention some tokens at a time, so that features live in the processor's cache and never fill memory.

The state is a sum over tokens, and every query reads it by itself; so it is with the gradient. Made for CPUs, right on
any device. Maps whose features depend on all tokens are left to the reference.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import narrow, widen
from .feature_maps import ACROSS_TOKENS
from .reference import (
    Form,
    State,
    apply,
    apply_backward,
    narrow_all,
    reduce,
    reduce_backward,
    saved_shapes,
    settle,
)

__all__ = ["backward", "forward", "saved_shapes", "unsupported"]

BLOCK = 1 << 17
"""Entries of a block of tokens with all their channels: 512 KiB of float32, so that a few of them fit into a cache."""


def unsupported(direction: str, tensors: Sequence[Tensor | None], form: Form) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    for name in (form.query_map, form.key_map):
        if name in ACROSS_TOKENS:
            return f"with {name} a token's features depend on all tokens"
    if tensors[0].device.type != "cpu":
        return f"it is for CPUs, the tensors are on {tensors[0].device.type}"
    return None


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield places in [B, N, heads, D], of samples and of tokens: runs of samples that are small, of tokens else."""
    batch, tokens = x.shape[:2]
    entries = max(1, x.shape[2] * x.shape[3])
    samples = max(1, BLOCK // (tokens * entries))
    length = max(1, BLOCK // entries)
    for sample in range(0, max(1, batch), samples):
        for token in range(0, tokens, length):
            yield slice(sample, sample + samples), slice(token, token + length)


def _cut(tensors: Sequence[Tensor | None], places: Sequence[Any]) -> list[Tensor | None]:
    """Return what lies at its place in each tensor, in at least float32."""
    return [None if x is None else widen(x[place]) for x, place in zip(tensors, places, strict=True)]


def _add(totals: Sequence[Tensor | None], places: Sequence[Any], parts: Sequence[Tensor | None]) -> None:
    """Add each part to what lies at its place in its total."""
    for total, place, part in zip(totals, places, parts, strict=True):
        if part is not None:
            total[place] += part


def _sums(tensors: Sequence[Tensor | None], form: Form) -> State:
    """Return the sums over keys and values of every sample."""
    _, k, v, weight, _, parameter, _, rotary = tensors
    sums: State | None = None
    for samples, tokens in _blocks(k):
        place, turn = (samples, tokens), (slice(None), tokens)
        parts = reduce(*_cut((k, v, weight, parameter, rotary), (place, place, place, ..., turn)), form)
        if sums is None:
            sums = State(*(x.new_zeros(k.shape[0], *x.shape[1:]) for x in parts))
        _add(sums, [samples] * 3, parts)
    return sums


def forward(tensors: Sequence[Tensor | None], form: Form) -> tuple[Tensor, ...]:
    """Return the output [B, N, heads, E] in the dtype of v."""
    q, k, v, _, parameter, _, rotary, _ = tensors
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    state = settle(_sums(tensors, form), k.shape[1], form)
    for samples, tokens in _blocks(q):
        place, turn = (samples, tokens), (slice(None), tokens)
        queries, angles = _cut((q, rotary), (place, turn))
        read = State(*(x[samples] for x in state))
        out[place] = narrow(apply(queries, read, parameter, angles, form), out.dtype)
    return (out,)


def backward(
    dout: Tensor,
    tensors: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    needed: Sequence[bool],
    form: Form,
) -> list[Tensor | None]:
    """Return the gradients of those `tensors` that are given and needed, None for the others."""
    q, k, v, weight, query_parameter, key_parameter, query_rotary, key_rotary = tensors
    state = settle(_sums(tensors, form), k.shape[1], form)
    dstate = State(*(torch.zeros_like(x) for x in state))
    # Gradients of tokens are written once, in the dtype they are to have; the others are sums.
    gradients = [
        None if x is None else x.new_empty(x.shape) if at < 4 else widen(x).new_zeros(x.shape)
        for at, x in enumerate(tensors)
    ]
    dq, dk, dv, dweight, dquery_parameter, dkey_parameter, dquery_rotary, dkey_rotary = gradients
    for samples, tokens in _blocks(q):
        place, turn = (samples, tokens), (slice(None), tokens)
        read = State(*(x[samples] for x in state))
        douts, queries, angles = _cut((dout, q, query_rotary), (place, place, turn))
        dqueries, dread, dparameter, dangles = apply_backward(
            douts, queries, read, query_parameter, angles, needed[6], form
        )
        dq[place] = narrow(dqueries, dq.dtype)
        _add(
            (*dstate, dquery_parameter, dquery_rotary),
            (samples, samples, samples, ..., turn),
            (*dread, dparameter, dangles),
        )
    dsums = settle(dstate, k.shape[1], form)
    for samples, tokens in _blocks(k):
        place, turn = (samples, tokens), (slice(None), tokens)
        keys, values, weights, angles = _cut((k, v, weight, key_rotary), (place, place, place, turn))
        dkeys, dvalues, dweights, dparameter, dangles = reduce_backward(
            State(*(x[samples] for x in dsums)), keys, values, weights, key_parameter, angles, needed[7], form
        )
        for total, part in ((dk, dkeys), (dv, dvalues), (dweight, dweights)):
            if part is not None:
                total[place] = narrow(part, total.dtype)
        _add((dkey_parameter, dkey_rotary), (..., turn), (dparameter, dangles))
    return narrow_all(gradients, tensors, needed)
