"""Attention's share of a model's step, plainly: the time of its attention alone over the time of the whole step.

Attention is what lies between the projections: what every `layers.attention_core.AttentionCore` of the model makes of
queries, keys and values, rotary positions, weights and biases of its own included; projections, gates and norms around
it are not. Every distinct call of a step is recorded, timed by itself on tensors of the same sizes and strides, with
gradients where the step is one of training, and counted as often as it occurs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...layers.attention_core import AttentionCore
from .timing import device_time


class Call:
    """A call of a core: called alike, calls of cores of one class and size are equal."""

    def __init__(self, core: AttentionCore, tensors: tuple[Tensor, ...], layout):
        self.core, self.layout = core, layout
        self.forms = tuple((tuple(x.shape), x.stride(), x.dtype) for x in tensors)
        parameters = tuple(tuple(x.shape) for x in core.parameters())
        self.key = (type(core), core.num_heads, parameters, self.forms, layout[:3])

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self.key == other.key

    def draw(self, device: torch.device) -> list[Tensor]:
        """Draw queries, keys and values of the recorded sizes, strides and dtypes."""
        return [
            torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()
            for shape, stride, dtype in self.forms
        ]


@contextmanager
def recorded(model: nn.Module) -> Iterator[Counter[Call]]:
    """Count the calls of the model's attention cores made inside the block."""
    calls: Counter[Call] = Counter()
    cores = [module for module in model.modules() if isinstance(module, AttentionCore)]

    def recorder(core: AttentionCore):
        attend = core.attend

        def record(q: Tensor, k: Tensor, v: Tensor, layout) -> Tensor:
            calls[Call(core, (q, k, v), layout)] += 1
            return attend(q, k, v, layout)

        return record

    for core in cores:
        core.attend = recorder(core)
    try:
        yield calls
    finally:
        for core in cores:
            del core.attend


def attention_ms(model: nn.Module, images: Tensor, gradients: bool, compiled: bool) -> float:
    """Return the milliseconds of all attention of a step under bfloat16 autocast.

    Args:
        gradients: also those of queries, keys, values and the cores' parameters.
        compiled: whether attention is compiled, as it is in a compiled model.

    Raises:
        ValueError: the model has no attention cores.
    """
    device = images.device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16), recorded(model) as calls:
        model(images)
    if not calls:
        raise ValueError(f"{type(model).__name__} has no attention cores whose time could be taken")
    return sum(count * _call_ms(call, device, gradients, compiled) for call, count in calls.items())


def _call_ms(call: Call, device: torch.device, gradients: bool, compiled: bool) -> float:
    attend = call.core.attend
    if compiled:
        torch.compiler.reset()
        attend = torch.compile(attend, dynamic=False)
    tokens = [x.requires_grad_(gradients) for x in call.draw(device)]
    leaves = [*tokens, *call.core.parameters()]

    def forward() -> Tensor:
        with torch.set_grad_enabled(gradients), torch.autocast(device.type, torch.bfloat16):
            return attend(*tokens, call.layout)

    if not gradients:
        return device_time(forward, device)
    dout = torch.randn_like(forward())
    return device_time(lambda: torch.autograd.grad(forward(), leaves, dout, allow_unused=True), device)
