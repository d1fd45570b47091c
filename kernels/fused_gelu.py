"""GELU with the error function, and its slope, as device functions that fused kernels share."""

import triton
import triton.language as tl

from . import gelu as host

FARTHEST = tl.constexpr(host.FARTHEST)
LOG2E_HALF = tl.constexpr(host.LOG2E_HALF)
LOG_DENSITY = tl.constexpr(host.LOG_DENSITY)
A, B, C, D, E, F, G, H = map(tl.constexpr, host.LOG_TAIL)


@triton.jit
def tail(distance):
    """The normal distribution up to minus `distance`, of 0 to FARTHEST: within 3e-7 of it, and 3e-8 at all.

    log2 of it is a smooth function, of which this is the polynomial fitted to that error: it takes half of the
    instructions of `tl.erf`, and relative accuracy holds where 1 + erf cancels.
    """
    log = A * distance + B
    log = log * distance + C
    log = log * distance + D
    log = log * distance + E
    log = log * distance + F
    log = log * distance + G
    log = log * distance + H
    return tl.exp2(log)


@triton.jit
def distance_of(x):
    return tl.minimum(tl.abs(x), FARTHEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def gelu(x):
    distance = distance_of(x)
    return tl.maximum(x, 0.0) - distance * tail(distance)


@triton.jit
def gelu_slope(x):
    distance = distance_of(x)
    bell = tl.exp2(distance * distance * -LOG2E_HALF + LOG_DENSITY)
    below = tail(distance) - distance * bell
    return tl.where(x < 0, below, 1 - below)
