"""GELU with the error function, spelled out for compilers, and the constants that it shares with fused kernels."""

import torch
from torch import Tensor

FARTHEST = 6.5
"""Beyond this the normal distribution's tail is taken for what it is here."""

LOG_TAIL = (
    6.17450828e-6,
    -3.15616979e-5,
    -5.04287209e-4,
    7.5379819e-3,
    -5.28237196e-2,
    -0.459098652,
    -1.15111904,
    -0.999999708,
)
"""log2 of the normal distribution up to minus x, for x of 0 to FARTHEST: a polynomial's coefficients, highest first."""

LOG2E_HALF = 0.7213475204444817
LOG_DENSITY = -1.3257480647361595
"""log2 of the normal density at 0."""


def gelu(x: Tensor) -> Tensor:
    """Return GELU as `torch.nn.functional.gelu` does, in operations of which a compiler makes one cheap pass.

    The error function is most of the instructions of a compiled GELU, which then takes longer than its memory; this
    takes under half of them: 328 us for 460 on an H200 for 802816 tokens of 384 channels in bfloat16. Eager, it would
    be a pass for each operation.

    Args:
        x: any shape, in half or single precision; computed in float32.

    Returns:
        The same shape and dtype, within 3e-7 of GELU before it is rounded; differentiable once.
    """
    wide = x.float()
    distance = wide.abs().clamp_max(FARTHEST)
    log = LOG_TAIL[0]
    for coefficient in LOG_TAIL[1:]:
        log = log * distance + coefficient
    tail = torch.exp2(log)
    out = wide.relu() - distance * tail
    if torch.is_grad_enabled() and x.requires_grad:
        bell = torch.exp2(distance * distance * -LOG2E_HALF + LOG_DENSITY)
        below = tail - distance * bell
        slope = torch.where(wide < 0, below, 1 - below)
        # Nothing is added; the difference carries the slope. A torch.autograd.Function has wrong gradients, compiled by
        # torch 2.11, where a cast in it changes nothing.
        out = out.detach() + slope.detach() * (wide - wide.detach())
    return out.to(x.dtype)
