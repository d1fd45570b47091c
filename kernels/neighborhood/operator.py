"""Registration of neighborhood attention with torch: the custom ops, their shapes, gradients, batching and FLOPs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..dispatch import Operator
from .geometry import geometry


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the log-sum-exp: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


OPERATOR = Operator(__package__, ("blocked", "reference"))


@torch.library.custom_op("saccade::neighborhood_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    causal: Sequence[bool],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    call = (q, k, v, bias, geometry(q.shape[1:-2], window, stride, dilation, causal))
    return OPERATOR.choose(backend, "forward", *call).forward(*call, scale)


@attention.register_fake
def _(q, k, v, bias, window, stride, dilation, causal, scale, backend):
    return v.new_empty(v.shape), q.new_empty(q.shape[:-1], dtype=lse_dtype(q.dtype))


@torch.library.custom_op("saccade::neighborhood_attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    dlse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    causal: Sequence[bool],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = geometry(q.shape[1:-2], window, stride, dilation, causal)
    chosen = OPERATOR.choose(backend, "backward", q, k, v, bias, shape)
    dq, dk, dv, dbias = chosen.backward(dout, dlse, q, k, v, bias, out, lse, shape, scale)
    # A custom op returns tensors only: no bias is an empty gradient.
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@attention_backward.register_fake
def _(dout, dlse, q, k, v, bias, out, lse, window, stride, dilation, causal, scale, backend):
    dbias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _save(ctx, inputs, output):
    q, k, v, bias, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, bias, *output)


def _gradients(ctx, dout, dlse):
    q, k, v, bias, out, lse = ctx.saved_tensors
    dq, dk, dv, dbias = attention_backward(dout, dlse, q, k, v, bias, out, lse, *ctx.settings)
    return dq, dk, dv, None if bias is None else dbias, *(None for _ in ctx.settings)


attention.register_autograd(_gradients, setup_context=_save)


def _vmap_rule(op, tensors: int, bias_at: int, bias_gradient: bool):
    """Return a vmap rule that folds the mapped axis of the first `tensors` arguments into the batch.

    A mapped bias, and the gradient of any bias, need one call for each entry of the mapped axis.
    """

    def rule(info, in_dims, *arguments):
        mapped = list(zip(arguments, in_dims, strict=True))
        bias, bias_dim = mapped[bias_at]
        if bias is not None and (bias_gradient or bias_dim is not None):
            calls = [op(*(x if dim is None else x.select(dim, i) for x, dim in mapped)) for i in range(info.batch_size)]
            return tuple(torch.stack(parts) for parts in zip(*calls, strict=True)), (0,) * len(calls[0])
        for at, (x, dim) in enumerate(mapped[:tensors]):
            if x is not None:
                x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
                mapped[at] = (x.flatten(0, 1), 0)
        results = op(*(x for x, _ in mapped))
        dims = tuple(0 if x.numel() else None for x in results)
        return tuple(x.unflatten(0, (info.batch_size, -1)) if x.numel() else x for x in results), dims

    return rule


attention.register_vmap(_vmap_rule(attention, tensors=4, bias_at=3, bias_gradient=False))
attention_backward.register_vmap(_vmap_rule(attention_backward, tensors=8, bias_at=5, bias_gradient=True))


@register_flop_formula(torch.ops.saccade.neighborhood_attention)
def _forward_flops(q_shape, k_shape, v_shape, bias_shape, window, *settings, out_shape=None, **kwargs) -> int:
    pairs = math.prod(q_shape[:-1]) * math.prod(window)
    return 2 * pairs * (q_shape[-1] + v_shape[-1])


@register_flop_formula(torch.ops.saccade.neighborhood_attention_backward)
def _backward_flops(
    dout, dlse, q_shape, k, v_shape, bias, out, lse, window, *settings, out_shape=None, **kwargs
) -> int:
    # Logits once more, then the products for dq, dk (with D) and d weights, dv (with the value's D).
    pairs = math.prod(q_shape[:-1]) * math.prod(window)
    return 2 * pairs * (3 * q_shape[-1] + 2 * v_shape[-1])
