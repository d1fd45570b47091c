"""Autocast for operators of our own, which torch's lists do not know."""

import torch
from torch import Tensor


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the autocast dtype where autocast is on; float64 stays what it is."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)
