"""Fused linear attention in Triton: features are made on the fly and never reach memory.

Serves float16, bfloat16 and float32 tensors on CUDA devices with the maps in `MAPS` and rotations that need no
gradient. Under TRITON_INTERPRET=1 also CPU tensors, slowly. Sums are taken in one order, so results repeat to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..launch import Plans, on_device, readable, why_not
from . import reference
from .fused_backward_plan import BackwardPlan
from .fused_plan import Call, ForwardPlan
from .reference import Form

MAPS = {
    "identity", "relu", "leaky_relu", "exponential", "elu", "elu_plus_one", "silu", "unit", "softmax_channels",
    "focused",
}  # fmt: skip
POSITIVE = {"relu", "exponential", "elu_plus_one", "softmax_channels", "focused"}
"""Maps whose features are not negative."""
LARGEST_WIDTH = 128
LARGEST_POWER = 8
"""Beyond it the powers of channels far below their token's length would leave float32's range."""
_plans = Plans()


def unsupported(direction: str, tensors: Sequence[Tensor | None], form: Form) -> str | None:
    """Return why this backend cannot serve the call, or None when it can."""
    q, _, v, *_ = tensors
    for name in (form.query_map, form.key_map):
        if name not in MAPS:
            return f"has no feature map {name}"
    if form.normalizer == "magnitude_aware" and not {form.query_map, form.key_map} <= POSITIVE:
        return "needs feature maps without negative features for magnitude_aware"
    if "focused" in (form.query_map, form.key_map) and form.power > LARGEST_POWER:
        return f"needs a power of at most {LARGEST_POWER}, got {form.power}"
    if max(q.shape[-1], v.shape[-1]) > LARGEST_WIDTH:
        return f"needs head dimensions of at most {LARGEST_WIDTH}, got {q.shape[-1]} and {v.shape[-1]}"
    return why_not(q)


def _prepared(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the tensors as the kernels read them: tokens with channels in order, the others contiguous."""
    return [x if x is None else readable(x) if at < 3 else x.contiguous() for at, x in enumerate(tensors)]


@on_device
def _forward(q: Tensor, tensors: Sequence[Tensor | None], form: Form) -> tuple[Tensor, ...]:
    out = torch.empty(*q.shape[:-1], tensors[2].shape[-1], dtype=q.dtype, device=q.device)
    if not out.numel():
        saved = saved_shapes(tensors, form)
        return out, *(torch.empty(shape, dtype=torch.float32, device=q.device) for shape in saved)
    tensors = _prepared(tensors)
    plan = _plans(lambda: ForwardPlan(Call(tensors, form), out), ("forward", form), *tensors)
    return out, *plan(tensors, out)


@on_device
def _backward(
    dout: Tensor, tensors: Sequence[Tensor | None], saved: Sequence[Tensor], form: Form
) -> list[Tensor | None]:
    dout = readable(dout)
    tensors = _prepared(tensors)
    q, k, v, weight = tensors[:4]
    gradients = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, weight)]
    out = saved[-1]
    plan = _plans(
        lambda: BackwardPlan(Call(tensors, form), out, dout, *gradients[:3]), ("backward", form), *tensors, out, dout
    )
    return [*gradients, *plan(tensors, dout, saved, gradients), None, None]


def forward(tensors: Sequence[Tensor | None], form: Form) -> tuple[Tensor, ...]:
    """Return the output [B, N, heads, E] in the dtype of v, then the state, the norms of queries and of keys, and what
    queries are divided by.
    """
    return _forward(tensors[0], tensors, form)


def saved_shapes(tensors: Sequence[Tensor | None], form: Form) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of what `forward` returns after the output."""
    call = Call(tensors, form)
    return call.state, call.stats(of_keys=False), call.stats(of_keys=True), call.sums


def backward(
    dout: Tensor,
    tensors: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    needed: Sequence[bool],
    form: Form,
) -> list[Tensor | None]:
    """Return the gradients of those `tensors` that are given and needed, None for the others."""
    if needed[6] or needed[7] or not dout.numel():
        return reference.backward(dout, tensors, saved, needed, form)
    gradients = _backward(dout, tensors, saved, form)
    return [
        gradient if gradient is None else gradient.to(x.dtype) if need else None
        for gradient, x, need in zip(gradients, tensors, needed, strict=True)
    ]
