"""Registration of batch normalisation with torch: the custom ops, their shapes, gradients and batching."""

import torch
from torch import Tensor

from ..autograd import differentiable, differentiable_once, fold_into_batch, keep
from ..dispatch import Operator
from .gradient import dtype_of_dx

OPERATOR = Operator(__package__, ("fused", "reference"))


@torch.library.custom_op("saccade::batch_norm", mutates_args=())
def norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    problem = (x, weight, bias, eps, dtype)
    return OPERATOR.choose(backend, "forward", *problem).forward(*problem)


@norm.register_fake
def _(x, weight, bias, eps, dtype, backend):
    sums = x.new_empty(x.shape[-1:], dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(x.shape, dtype=dtype), sums, torch.empty_like(sums)


@torch.library.custom_op("saccade::batch_norm_backward", mutates_args=())
def norm_backward(
    dout: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = OPERATOR.choose(backend, "backward", x, weight, bias, eps, dout.dtype)
    return chosen.backward(dout, x, mean, var, weight, bias, eps)


@norm_backward.register_fake
def _(dout, x, mean, var, weight, bias, *settings):
    dx = x.new_empty(x.shape, dtype=dtype_of_dx(dout, x))
    return dx, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    x, weight, bias, ctx.eps, _, ctx.backend = inputs
    keep(ctx, output[1:], x, weight, bias)


def _gradients(ctx, dout, *moments):
    if dout is None:
        return (None,) * 6
    mean, var, x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = call_backward(dout, x, mean, var, weight, bias, ctx.eps, ctx.backend)
    return dx.to(x.dtype), dweight, dbias, None, None, None


# Its sums run over the batch: a mapped axis cannot be folded into that.
call = differentiable(
    norm,
    _save,
    _gradients,
    fold_into_batch(lambda *inputs: call(*inputs), tensors=3, shared=(1, 2), sums_over_batch=True),
)
call_backward = differentiable_once(
    norm_backward,
    fold_into_batch(lambda *inputs: call_backward(*inputs), tensors=6, shared=(2, 3, 4, 5), sums_over_batch=True),
)
