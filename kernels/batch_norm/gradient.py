"""The dtype in which the gradient of a normalised map is handed on."""

import torch
from torch import Tensor


def dtype_of_dx(dout: Tensor, x: Tensor) -> torch.dtype:
    """Return bfloat16 where the output's gradient has no more, so that half the memory moves, else the dtype of x.

    Who adds it to the gradient of a residual stream widens it on the way. Float16 would not hold all of its range.
    """
    return dout.dtype if dout.dtype == torch.bfloat16 else x.dtype
