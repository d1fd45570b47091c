"""Gated linear attention over chunks of tokens: weights of all pairs inside a chunk, a state from one to the next.

Runs on any device and dtype, in at least float32. This file is the specification that other backends are tested
against. What a token's key has decayed to at a query is a product of the gates between them, and it is only ever made
by multiplying gates, never as a quotient of products from the start: two neighbouring halves of 1, 2, 4 ... tokens
meet at their border, so a late query sees an early key through the decay from the border to the query times that from
the key to the border. Both are at most 1 when gates are, so nothing overflows, and a gate of zero is as good as any.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..precision import narrow

CHUNK = 32


def unsupported(
    direction: str, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, reverse_log_gate: Tensor | None
) -> str | None:
    """Return why this backend cannot serve the call: it always can."""
    return None


def chunk_size(tokens: int) -> int:
    """Return the tokens of a chunk, a power of two."""
    return min(CHUNK, 1 << (tokens - 1).bit_length())


def _cut(x: Tensor) -> Tensor:
    """Copy [B, *spatial, heads, D] as [B, heads, chunks, C, D] in at least float32, zeros in the last chunk's rest."""
    rows = x.flatten(1, -3).transpose(1, 2)
    chunk = chunk_size(rows.shape[2])
    lack = -rows.shape[2] % chunk
    shape = (*rows.shape[:2], rows.shape[2] + lack, rows.shape[3])
    copy = torch.empty(shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    copy[:, :, : rows.shape[2]].copy_(rows)
    copy[:, :, rows.shape[2] :].zero_()
    return copy.unflatten(2, (-1, chunk))


def _join(x: Tensor, like: Tensor) -> Tensor:
    """Undo `_cut`, in the shape and dtype of `like`."""
    tokens = like.shape[1:-2].numel()
    return narrow(x.flatten(2, 3)[:, :, :tokens].transpose(1, 2), like.dtype).reshape(like.shape)


def _halves(x: Tensor, size: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """View neighbouring halves, [..., C, D] as [..., C / (2 size), size, D] twice: what a scan meets first and last."""
    first, second = x.unflatten(-2, (-1, 2, size)).unbind(-3)
    return (second, first) if reverse else (first, second)


def _corners(weights: Tensor, size: int, reverse: bool) -> Tensor:
    """View the weights [..., C, C] of late queries and early keys as [..., C / (2 size), size, size]."""
    blocks = weights.unflatten(-1, (-1, 2, size)).unflatten(-4, (-1, 2, size))
    pairs = blocks.diagonal(dim1=-6, dim2=-3).movedim(-1, -5)
    return pairs[..., 0, :, 1, :] if reverse else pairs[..., 1, :, 0, :]


def _through(upto: Tensor, reverse: bool) -> Tensor:
    """View the decay through all of [..., tokens, D], that up to the last one."""
    return upto[..., :1, :] if reverse else upto[..., -1:, :]


def _decays(log_gate: Tensor, reverse: bool) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield sizes 1, 2, 4 ... C of blocks, and decays inside each: up to and with each token, and after each token.

    The decays, of the gates' shape, are updated in place.
    """
    upto, after = log_gate.exp(), torch.ones_like(log_gate)
    size, chunk = 1, log_gate.shape[-2]
    while True:
        yield size, upto, after
        if size == chunk:
            return
        (early, late), (after_early, _) = (_halves(x, size, reverse) for x in (upto, after))
        after_early.mul_(_through(late, reverse))
        late.mul_(_through(early, reverse))
        size *= 2


def _carried(states: Tensor, through: Tensor, reverse: bool) -> Tensor:
    """Return what is left, at each chunk, of the states [B, heads, chunks, D, E] that the chunks before it add.

    Args:
        through: decay through each chunk, [B, heads, chunks, 1, D].
    """
    carried, decay = torch.empty_like(states), through.mT
    chunks = range(states.shape[2])
    order = chunks[::-1] if reverse else chunks
    carried[:, :, order[0]].zero_()
    for last, index in pairwise(order):
        torch.addcmul(states[:, :, last], decay[:, :, last], carried[:, :, last], out=carried[:, :, index])
    return carried


def _scans(log_gate: Tensor, reverse_log_gate: Tensor | None) -> list[tuple[bool, Tensor]]:
    """Return, of each scan, whether it is a reverse one, and its gates in chunks."""
    gates = ((False, log_gate), (True, reverse_log_gate))
    return [(reverse, _cut(gate)) for reverse, gate in gates if gate is not None]


def forward(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, reverse_log_gate: Tensor | None, scale: float) -> Tensor:
    """Return the output [B, *spatial, heads, E] in the dtype of v."""
    scans = _scans(log_gate, reverse_log_gate)
    queries, keys, values = _cut(q).mul_(scale / len(scans)), _cut(k), _cut(v)
    chunks, chunk = queries.shape[2:4]
    weights = _own_weights(queries, keys, len(scans))
    out = torch.zeros_like(values)
    for reverse, gate in scans:
        for size, upto, after in _decays(gate, reverse):
            if size < chunk:
                _weigh(weights, queries, keys, size, upto, after, reverse)
        if chunks > 1:
            states = _carried((keys * after).mT @ values, _through(upto, reverse), reverse)
            _add_product(out, queries * upto, states)
    return _join(_add_product(out, weights, values), v)


def _own_weights(queries: Tensor, keys: Tensor, scans: int) -> Tensor:
    """Return weights [..., C, C] of tokens at themselves, where every scan sees them without decay; else zeros."""
    weights = queries.new_zeros(*queries.shape[:-1], queries.shape[-2])
    weights.diagonal(dim1=-2, dim2=-1).copy_((queries * keys).sum(-1).mul_(scans))
    return weights


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of matrices; of single numbers or rows, in one pass."""
    if a.shape[-2] > 1:
        return a @ b
    return a * b if a.shape[-1] == 1 else (a * b.mT).sum(-1, keepdim=True)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a product of matrices [B, heads, chunks, ., .] to `out`, in place."""
    out.flatten(0, 2).baddbmm_(a.flatten(0, 2), b.flatten(0, 2))
    return out


def _weigh(
    weights: Tensor, queries: Tensor, keys: Tensor, size: int, upto: Tensor, after: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Fill in the weights between halves of `size`; return the late queries and the early keys, decayed."""
    late = _halves(queries, size, reverse)[1] * _halves(upto, size, reverse)[1]
    early = _halves(keys, size, reverse)[0] * _halves(after, size, reverse)[0]
    _corners(weights, size, reverse).copy_(_product(late, early.mT))
    return late, early


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    reverse_log_gate: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and the logarithms of the gates, given that of the output.

    The gradient of a gate's logarithm is the sum, over the pairs of a query and a key that it lies between, of weight
    times its gradient. A border's pairs are summed on either side of it: what a late query makes of its gradient goes
    to the gates from the border to the query, and what an early key makes of its to those from the key to the border.
    """
    scans = _scans(log_gate, reverse_log_gate)
    factor = scale / len(scans)
    queries, keys, values, douts = _cut(q).mul_(factor), _cut(k), _cut(v), _cut(dout)
    chunks, chunk = queries.shape[2:4]
    dweights = douts @ values.mT
    weights = _own_weights(queries, keys, len(scans))
    own = dweights.diagonal(dim1=-2, dim2=-1)[..., None] * len(scans)
    dqueries, dkeys = own * keys, own * queries
    dvalues = torch.zeros_like(values)
    dgates = {}
    for reverse, gate in scans:
        dgate = dgates[reverse] = torch.zeros_like(gate)
        for size, upto, after in _decays(gate, reverse):
            if size == chunk:
                break
            late, early = _weigh(weights, queries, keys, size, upto, after, reverse)
            corners = _corners(dweights, size, reverse)
            dlate, dearly = _product(corners, early), _product(corners.mT, late)
            _add(dgate, dlate * late, dearly * early, size, reverse)
            _halves(dqueries, size, reverse)[1].addcmul_(dlate, _halves(upto, size, reverse)[1])
            _halves(dkeys, size, reverse)[0].addcmul_(dearly, _halves(after, size, reverse)[0])
        if chunks > 1:
            through, late, early = _through(upto, reverse), queries * upto, keys * after
            states = _carried(early.mT @ values, through, reverse)
            dstates = _carried(late.mT @ douts, through, not reverse)
            dlate, dearly = douts @ states.mT, values @ dstates.mT
            dgate += _spread(dlate * late, reverse, itself=True) + _spread(dearly * early, not reverse, itself=False)
            dgate += through * (states * dstates).sum(-1).unsqueeze(-2)
            _add_product(dvalues, early, dstates)
            dqueries.addcmul_(dlate, upto)
            dkeys.addcmul_(dearly, after)
    _add_product(dvalues, weights.mT, douts)
    dreverse = None if reverse_log_gate is None else _join(dgates[True], reverse_log_gate)
    dq, dk, dv = (_join(*pair) for pair in ((dqueries.mul_(factor), q), (dkeys, k), (dvalues, v)))
    return dq, dk, dv, _join(dgates[False], log_gate), dreverse


def _add(dgate: Tensor, of_late: Tensor, of_early: Tensor, size: int, reverse: bool) -> None:
    """Add to the gates' gradient what pairs across the borders of halves of `size` make of theirs."""
    early, late = _halves(dgate, size, reverse)
    late += _spread(of_late, reverse, itself=True)
    early += _spread(of_early, not reverse, itself=False)


def _spread(x: Tensor, reverse: bool, itself: bool) -> Tensor:
    """Return, at each of [..., tokens, D], the sum of what a scan meets from there on; `itself` counts it too."""
    if x.shape[-2] == 1:
        return x if itself else torch.zeros_like(x)
    ones = torch.ones(x.shape[-2], x.shape[-2], dtype=x.dtype, device=x.device)
    after = ones.triu(0 if itself else 1)
    return (after.mT if reverse else after) @ x
