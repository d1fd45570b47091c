"""Registration of linear attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autograd import as_tensors, differentiable, differentiable_once, fold_into_batch, keep
from ..dispatch import Operator
from .feature_maps import width
from .reference import Form

OPERATOR = Operator(__package__, ("fused", "blocked", "reference"))
TENSORS = 8
RESULTS = 5
"""The output, and tensors that a backend may keep for the gradient with it, empty where it does not."""
WITHOUT_BATCH = (4, 5, 6, 7)


@torch.library.custom_op("saccade::linear_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_weight: Tensor | None,
    query_parameter: Tensor | None,
    key_parameter: Tensor | None,
    query_rotary: Tensor | None,
    key_rotary: Tensor | None,
    query_map: str,
    key_map: str,
    normalizer: str,
    scale: float,
    mean: bool,
    power: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary)
    form = Form(query_map, key_map, normalizer, scale, mean, power, eps)
    results = OPERATOR.choose(backend, "forward", tensors, form).forward(tensors, form)
    return *results, *(_saved(q) for _ in range(RESULTS - len(results)))


def _saved(q: Tensor, shape: Sequence[int] = (0,)) -> Tensor:
    return q.new_empty(shape, dtype=torch.float32)


@attention.register_fake
def _(q, k, v, *rest):
    *settings, backend = rest[TENSORS - 3 :]
    call = (q, k, v, *rest[: TENSORS - 3]), Form(*settings)
    shapes = OPERATOR.choose(backend, "forward", *call).saved_shapes(*call)
    saved = [_saved(q, shape) for shape in (*shapes, *[(0,)] * (RESULTS - 1 - len(shapes)))]
    return v.new_empty(*q.shape[:-1], v.shape[-1]), *saved


@torch.library.custom_op("saccade::linear_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_weight: Tensor | None,
    query_parameter: Tensor | None,
    key_parameter: Tensor | None,
    query_rotary: Tensor | None,
    key_rotary: Tensor | None,
    state: Tensor,
    query_stats: Tensor,
    key_stats: Tensor,
    sums: Tensor,
    out: Tensor | None,
    needed: Sequence[bool],
    query_map: str,
    key_map: str,
    normalizer: str,
    scale: float,
    mean: bool,
    power: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary)
    form = Form(query_map, key_map, normalizer, scale, mean, power, eps)
    saved = (state, query_stats, key_stats, sums, out)
    gradients = OPERATOR.choose(backend, "backward", tensors, form).backward(dout, tensors, saved, needed, form)
    # What nobody asks for has no gradient.
    return as_tensors(gradients, q)


@attention_backward.register_fake
def _(dout, *rest):
    tensors, needed = rest[:TENSORS], rest[TENSORS + RESULTS]
    return tuple(
        x.new_empty(x.shape) if need and x is not None else dout.new_empty(0)
        for x, need in zip(tensors, needed, strict=True)
    )


def _save(ctx, inputs, output):
    ctx.settings = inputs[TENSORS:]
    out, *saved = output
    keep(ctx, saved, out if saved[0].numel() else None, *inputs[:TENSORS])


def _gradients(ctx, dout, *of_saved):
    if dout is None:
        return (None,) * (TENSORS + len(ctx.settings))
    given = ctx.saved_tensors
    saved, tensors = given[:RESULTS], given[RESULTS:]
    needed = [need and x is not None for x, need in zip(tensors, ctx.needs_input_grad[:TENSORS], strict=True)]
    gradients = call_backward(dout, *tensors, *saved, needed, *ctx.settings)
    gradients = (gradient if need else None for gradient, need in zip(gradients, needed, strict=True))
    return *gradients, *(None for _ in ctx.settings)


call = differentiable(
    attention,
    _save,
    _gradients,
    fold_into_batch(lambda *inputs: call(*inputs), tensors=TENSORS, shared=WITHOUT_BATCH),
)
call_backward = differentiable_once(
    attention_backward,
    fold_into_batch(
        lambda *inputs: call_backward(*inputs),
        tensors=1 + TENSORS + RESULTS,
        shared=[1 + at for at in WITHOUT_BATCH],
        sums_over_batch=True,
    ),
)


def _products(q, k, v, key_weight, query_parameter, key_parameter, query_rotary, key_rotary, query_map, key_map) -> int:
    """Return the multiplications of reducing keys and values and of applying the state, maps not counted."""
    read = math.prod(q[:-1]) * width(query_map, q[-1], query_parameter)
    made = math.prod(k[:-1]) * width(key_map, k[-1], key_parameter)
    return (read + made) * v[-1] + read


@register_flop_formula(torch.ops.saccade.linear_attention)
def _forward_flops(*arguments, out_shape=None, **kwargs) -> int:
    return 2 * _products(*arguments[: TENSORS + 2])


@register_flop_formula(torch.ops.saccade.linear_attention_backward)
def _backward_flops(dout, *arguments, out_shape=None, **kwargs) -> int:
    # The state once more; each product has two gradients.
    settings = TENSORS + RESULTS + 1
    return 6 * _products(*arguments[:TENSORS], *arguments[settings : settings + 2])
