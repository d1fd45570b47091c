"""Gradient and batching rules for a custom op, in the forms that compilers and torch.func each need."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import autocast


def differentiable(op: Any, setup_context: Callable, backward: Callable, vmap: Callable) -> Callable[..., Any]:
    """Register the rules with a `torch.library` custom op and return the function to call it by.

    Compilers trace the op itself. In eager mode the returned function goes through a `torch.autograd.Function`, because
    the autograd of torch.library does not compose with torch.func.

    Args:
        op: the result of `torch.library.custom_op`; its inputs are positional.
        setup_context, backward, vmap: as for `torch.autograd.Function`.
    """
    op.register_autograd(backward, setup_context=setup_context)
    op.register_vmap(vmap)

    def forward(*inputs: Any) -> Any:
        return op(*inputs)

    # torch asks for it at every call, and finding it out takes longer than the rest of one.
    forward.__signature__ = inspect.signature(forward)
    methods = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
        "generate_vmap_rule": False,
    }
    function = type(op._qualname.replace("::", "_"), (torch.autograd.Function,), methods)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*inputs)
        # What an operator widens to float32 stays so: autocast reaches into custom ops.
        with autocast.off(inputs[0]):
            return function.apply(*inputs) if torch.is_grad_enabled() else op(*inputs)

    return call


def differentiable_once(op: Any, vmap: Callable) -> Callable[..., Any]:
    """Return the function to call a backward op by; asking for the gradient of a gradient is one clear error."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{op._qualname.removesuffix('_backward')} is differentiable once; its gradient has no gradient"
        )

    return differentiable(op, lambda ctx, inputs, output: None, refuse, vmap)


def keep(ctx: Any, kept: Sequence[Tensor], *others: Tensor | None) -> None:
    """Save for the backward pass the results after the first, which have no gradient, and then other tensors.

    Where nobody asks for the gradient of the first result, `backward` is given None for it.
    """
    ctx.mark_non_differentiable(*kept)
    # Else autograd would make zeros for them.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*kept, *others)


def as_tensors(values: Iterable[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Return what a custom op may, which is tensors only: an empty one, of the dtype and device of `like`, for None."""
    return tuple(like.new_empty(0) if value is None else value for value in values)


def as_given(gradients: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return a backward op's gradients, None again for inputs that are None."""
    return tuple(None if x is None else gradient for gradient, x in zip(gradients, inputs, strict=True))


def fold_into_batch(
    call: Callable[..., Tensor | tuple[Tensor, ...]],
    tensors: int,
    shared: Sequence[int] = (),
    sums_over_batch: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Return a vmap rule that folds the mapped axis of the first `tensors` arguments into their batch axis.

    Args:
        call: the function to call with the folded arguments.
        tensors: how many of the first arguments are tensors (or None) with a batch axis.
        shared: indices of those among them without a batch axis, such as a bias.
        sums_over_batch: some result is a sum over the batch when a shared argument is given.

    A mapped shared argument, or a sum over the batch, needs one call for each entry of the mapped axis.
    """

    def rule(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
        given, settings = list(zip(arguments, in_dims, strict=True))[:tensors], arguments[tensors:]
        alone = [given[at] for at in shared if given[at][0] is not None]
        if any(sums_over_batch or dim is not None for _, dim in alone):
            calls = [
                call(*(x if dim is None else x.select(dim, i) for x, dim in given), *settings)
                for i in range(info.batch_size)
            ]
            if isinstance(calls[0], Tensor):
                return torch.stack(calls), 0
            return tuple(torch.stack(parts) for parts in zip(*calls, strict=True)), (0,) * len(calls[0])
        folded = []
        for at, (x, dim) in enumerate(given):
            if x is not None and at not in shared:
                x = (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            folded.append(x)
        results = call(*folded, *settings)
        if isinstance(results, Tensor):
            return results.unflatten(0, (info.batch_size, -1)), 0
        # A flat result has no batch axis, as that which stands for the gradient of an argument that is None.
        unfolded = tuple(x.unflatten(0, (info.batch_size, -1)) if x.dim() > 1 else x for x in results)
        return unfolded, tuple(0 if x.dim() > 1 else None for x in results)

    return rule
