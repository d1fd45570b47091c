"""The dtype operators compute in, and the way back to the one they were called with."""

import torch
from torch import Tensor

HALF_MAX = torch.finfo(torch.float16).max


def widen(x: Tensor) -> Tensor:
    """Return a tensor in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype; what float16 cannot hold becomes its largest number instead of infinity."""
    return (x.clamp(-HALF_MAX, HALF_MAX) if dtype == torch.float16 else x).to(dtype)
