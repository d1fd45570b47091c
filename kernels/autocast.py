"""Autocast for operators of our own, which torch's lists do not know."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_on(device: str) -> bool:
    """Return whether autocast is on for a type of device; the meta device has none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def off(x: Tensor) -> AbstractContextManager:
    """Return a context in which autocast leaves what happens on the device of `x` as it is."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if is_on(device) else nullcontext()


def dtype_of(x: Tensor, device: str) -> torch.dtype:
    """Return the dtype that autocast on a type of device gives a tensor; float64 stays what it is."""
    return x.dtype if x.dtype == torch.float64 or not is_on(device) else torch.get_autocast_dtype(device)


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the autocast dtype where autocast is on; float64 stays what it is."""
    device = tensors[0].device.type
    return tuple(x.to(dtype_of(x, device)) for x in tensors) if is_on(device) else tensors
