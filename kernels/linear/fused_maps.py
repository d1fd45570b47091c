"""Feature maps, normalisers and rotation of fused linear attention, as device functions on tiles.

The names and formulas are those of feature_maps.py. Tiles are [BLOCK, GROUP, WIDTH]; channels beyond D are zero before
a map and after it.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E
from .fused_tiles import heads_of

LEAST = tl.constexpr(1e-6)
"""What the focused map adds to relu."""
# The least normal float32; Triton would take a constant below it as float64.
SMALLEST = tl.constexpr(2.0**-126)


@triton.jit
def raised(x, POWER: tl.constexpr):
    """x ** POWER of x >= 0."""
    if POWER == 3:
        return x * x * x
    elif POWER == 2:
        return x * x
    else:
        return tl.where(x > 0, tl.exp2(tl.log2(tl.maximum(x, SMALLEST)) * POWER), 0.0)


@triton.jit
def head_scales(
    parameter_ptr, group, heads, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, HAS_PARAMETER: tl.constexpr
):
    """What the focused map multiplies channels by, [GROUP, WIDTH]: 1 over softplus of the parameters, 0 in padding."""
    head = heads_of(group, GROUP)
    d = tl.arange(0, WIDTH)
    inside = (head < heads)[:, None] & (d < D)[None, :]
    if HAS_PARAMETER:
        parameter = tl.load(parameter_ptr + head[:, None] * D + d[None, :], mask=inside, other=0.0)
        return tl.where(inside, 1 / softplus(parameter.to(tl.float32)), 0.0)
    else:
        return inside.to(tl.float32)


@triton.jit
def positive(x, scales):
    """relu(x) + LEAST, scaled, of [tokens, ...] with scales [...]."""
    return (tl.maximum(x, 0.0) + LEAST) * tl.expand_dims(scales, 0)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def lengths(y, POWER: tl.constexpr):
    """|y|^2 and, with r = (y / |y|)^POWER, |r|^2 of each token over all channels of a tile."""
    square = tl.sum(tl.sum(y * y, 2), 1)
    bent = raised(y * tl.rsqrt(square)[:, None, None], POWER)
    return square, tl.sum(tl.sum(bent * bent, 2), 1)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp2(x * -LOG2E))


@triton.jit
def features(x, lift, scales, MAP: tl.constexpr, POWER: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Features of a tile; of the focused map r, which a token's `factor` remains to multiply, from `lift` 1 / |y|."""
    if MAP == "relu":
        y = tl.maximum(x, 0.0)
    elif MAP == "leaky_relu":
        y = tl.where(x > 0, x, 0.01 * x)
    elif MAP == "exponential":
        y = without_padding(tl.exp2(x * (0.2 * LOG2E)), D, WIDTH)
    elif MAP == "elu":
        y = tl.where(x > 0, x, tl.exp2(tl.minimum(x, 0.0) * LOG2E) - 1)
    elif MAP == "elu_plus_one":
        y = without_padding(tl.maximum(x, 0.0) + tl.exp2(tl.minimum(x, 0.0) * LOG2E), D, WIDTH)
    elif MAP == "silu":
        y = x * sigmoid(x)
    elif MAP == "unit":
        y = x / length(x)
    elif MAP == "softmax_channels":
        y = softmax(x, D, WIDTH)
    elif MAP == "focused":
        y = raised(positive(x, scales) * lift[:, None, None], POWER)
    else:
        y = x
    return y


@triton.jit
def without_padding(x, D: tl.constexpr, WIDTH: tl.constexpr):
    if D < WIDTH:
        x = tl.where((tl.arange(0, WIDTH) < D)[None, None, :], x, 0.0)
    return x


@triton.jit
def length(x):
    """|x| of each head."""
    return tl.maximum(tl.sqrt(tl.sum(x * x, 2)), 1e-12)[:, :, None]


@triton.jit
def softmax(x, D: tl.constexpr, WIDTH: tl.constexpr):
    x = tl.where((tl.arange(0, WIDTH) < D)[None, None, :], x, float("-inf"))
    y = tl.exp2((x - tl.max(x, 2)[:, :, None]) * LOG2E)
    return y / tl.sum(y, 2)[:, :, None]


@triton.jit
def pullback(x, d, MAP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Gradient of tokens from that of their features, for maps that look at one head."""
    if MAP == "relu":
        return tl.where(x > 0, d, 0.0)
    elif MAP == "leaky_relu":
        return tl.where(x > 0, d, 0.01 * d)
    elif MAP == "exponential":
        return 0.2 * d * tl.exp2(x * (0.2 * LOG2E))
    elif MAP == "elu" or MAP == "elu_plus_one":
        return d * tl.exp2(tl.minimum(x, 0.0) * LOG2E)
    elif MAP == "silu":
        gate = sigmoid(x)
        return d * gate * (1 + x * (1 - gate))
    elif MAP == "unit":
        size = length(x)
        y = x / size
        return (d - y * tl.sum(y * d, 2)[:, :, None]) / size
    elif MAP == "softmax_channels":
        y = softmax(x, D, WIDTH)
        return y * (d - tl.sum(y * d, 2)[:, :, None])
    else:
        return d


@triton.jit
def turned(x, rotary_ptr, n, valid, tokens, c, BACK: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr):
    """[tokens, heads, channels `c`] with each pair of neighbouring channels turned by its token's angle, or BACK by it.

    `rotary_ptr` is [2, tokens, D], cosines and sines.
    """
    if ROTARY:
        at = rotary_ptr + n[:, None] * D + c[None, :]
        inside = valid[:, None] & (c < D)[None, :]
        cos = tl.load(at, mask=inside, other=0.0).to(tl.float32)[:, None, :]
        sin = tl.load(at + tokens * D, mask=inside, other=0.0).to(tl.float32)[:, None, :]
        if BACK:
            x = x * cos - quarter_turn(x * sin)
        else:
            x = x * cos + quarter_turn(x) * sin
    return x


@triton.jit
def quarter_turn(x):
    """Each pair of neighbouring channels (a, b) as (-b, a)."""
    a, b = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2] // 2, 2)))
    return tl.reshape(tl.join(-b, a), x.shape)


@triton.jit
def normalizer(t, eps, NORMALIZER: tl.constexpr):
    """alpha and beta."""
    if NORMALIZER == "divide":
        return 1 / (t + eps), tl.zeros_like(t)
    elif NORMALIZER == "divide_clamped":
        return 1 / tl.maximum(t, eps), tl.zeros_like(t)
    elif NORMALIZER == "subtract":
        return tl.full(t.shape, 1.0, tl.float32), 1 - t
    elif NORMALIZER == "magnitude_aware":
        return 1 + 1 / (t + eps), -t
    else:
        return tl.full(t.shape, 1.0, tl.float32), tl.zeros_like(t)


@triton.jit
def normalizer_pullback(t, alpha, eps, delta, dbeta, NORMALIZER: tl.constexpr):
    """Gradient of t, given those of alpha, times alpha, and of beta."""
    if NORMALIZER == "divide":
        return -delta * alpha
    elif NORMALIZER == "divide_clamped":
        return tl.where(t >= eps, -delta * alpha, 0.0)
    elif NORMALIZER == "subtract":
        return -dbeta
    elif NORMALIZER == "magnitude_aware":
        return -delta / (alpha * (t + eps) * (t + eps)) - dbeta
    else:
        return tl.zeros_like(t)
