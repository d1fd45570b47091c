"""Feature maps, normalisers and rotation of fused linear attention, as device functions on rows [tokens, WIDTH].

The names and formulas are those of feature_maps.py. Channels beyond D are zero before a map and after it.
"""

import triton
import triton.language as tl

from ..fused_rows import LOG2E, load_tokens


@triton.jit
def raised(x, POWER: tl.constexpr):
    """x ** POWER of x >= 0."""
    if POWER == 3:
        return x * x * x
    elif POWER == 2:
        return x * x
    else:
        return tl.where(x > 0, tl.exp2(tl.log2(tl.maximum(x, 1e-38)) * POWER), 0.0)


@triton.jit
def positive(x, parameter_ptr, head, D: tl.constexpr, WIDTH: tl.constexpr, HAS_PARAMETER: tl.constexpr):
    """relu(x) + 1e-6, over softplus of a head's parameters."""
    d = tl.arange(0, WIDTH)
    y = tl.maximum(x, 0.0) + 1e-6
    if HAS_PARAMETER:
        scale = softplus(tl.load(parameter_ptr + head * D + d, mask=d < D, other=0.0).to(tl.float32))
        y = y * (1 / scale)[None, :]
    return tl.where((d < D)[None, :], y, 0.0)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def lengths(
    x_ptr,
    at,
    valid,
    head_stride,
    parameter_ptr,
    heads,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    POWER: tl.constexpr,
):
    """Of the focused map over all heads: each token's largest y, |y| / |r| and |r|^2, with r = (y / largest)^POWER."""
    top = tl.full(at.shape, 1e-30, tl.float32)
    square = tl.zeros_like(top)
    steep = tl.zeros_like(top)
    for head in range(0, heads):
        x = load_tokens(x_ptr + head * head_stride, at, valid, D, WIDTH).to(tl.float32)
        y = positive(x, parameter_ptr, head, D, WIDTH, HAS_PARAMETER)
        square += tl.sum(y * y, 1)
        higher = tl.maximum(top, tl.max(y, 1))
        bent = raised(y * (1 / higher)[:, None], POWER)
        shrink = raised(top / higher, POWER)
        steep = steep * shrink * shrink + tl.sum(bent * bent, 1)
        top = higher
    return top, tl.sqrt(square / steep), steep


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp2(x * -LOG2E))


@triton.jit
def features(
    x,
    top,
    factor,
    parameter_ptr,
    head,
    MAP: tl.constexpr,
    POWER: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
):
    """Features of a head's tokens; `top` and `factor` are what `lengths` gives."""
    if MAP == "relu":
        y = tl.maximum(x, 0.0)
    elif MAP == "leaky_relu":
        y = tl.where(x > 0, x, 0.01 * x)
    elif MAP == "exponential":
        y = tl.exp2(x * (0.2 * LOG2E))
    elif MAP == "elu":
        y = tl.where(x > 0, x, tl.exp2(tl.minimum(x, 0.0) * LOG2E) - 1)
    elif MAP == "elu_plus_one":
        y = tl.maximum(x, 0.0) + tl.exp2(tl.minimum(x, 0.0) * LOG2E)
    elif MAP == "silu":
        y = x * sigmoid(x)
    elif MAP == "unit":
        y = x / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)[:, None]
    elif MAP == "softmax_channels":
        y = softmax(x, D, WIDTH)
    elif MAP == "focused":
        y = (
            raised(positive(x, parameter_ptr, head, D, WIDTH, HAS_PARAMETER) * (1 / top)[:, None], POWER)
            * factor[:, None]
        )
    else:
        y = x
    return tl.where((tl.arange(0, WIDTH) < D)[None, :], y, 0.0)


@triton.jit
def softmax(x, D: tl.constexpr, WIDTH: tl.constexpr):
    x = tl.where((tl.arange(0, WIDTH) < D)[None, :], x, float("-inf"))
    y = tl.exp2((x - tl.max(x, 1)[:, None]) * LOG2E)
    return y / tl.sum(y, 1)[:, None]


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
        length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)[:, None]
        y = x / length
        return (d - y * tl.sum(y * d, 1)[:, None]) / length
    elif MAP == "softmax_channels":
        y = softmax(x, D, WIDTH)
        return y * (d - tl.sum(y * d, 1)[:, None])
    else:
        return d


@triton.jit
def focused_pullback(d, along, top, factor, y, POWER: tl.constexpr):
    """Gradient of y = `positive(x)` from that of the focused features.

    With r = (y / top)^POWER, the features are r |y| / |r| = r * factor, and `along` is sum(d r) / |r|^2 over all heads.
    """
    lift = 1 / top
    steep = y * lift[:, None]
    draised = d - raised(steep, POWER) * along[:, None]
    return draised * raised(steep, POWER - 1) * (factor * lift * POWER)[:, None] + y * (along / factor)[:, None]


@triton.jit
def turned(
    x, rotary_ptr, n, valid, tokens, BACK: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROTARY: tl.constexpr
):
    """Rows with each pair of neighbouring channels turned by its token's angle, or BACK by it.

    `rotary_ptr` is [2, tokens, D], cosines and sines.
    """
    if ROTARY:
        d = tl.arange(0, WIDTH)
        at = rotary_ptr + n[:, None] * D + d[None, :]
        inside = valid[:, None] & (d < D)[None, :]
        cos = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(at + tokens * D, mask=inside, other=0.0).to(tl.float32)
        if BACK:
            x = x * cos - quarter_turn(x * sin)
        else:
            x = x * cos + quarter_turn(x) * sin
    return x


@triton.jit
def quarter_turn(x):
    """Each pair of neighbouring channels (a, b) as (-b, a)."""
    a, b = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
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
def normalizer_pullback(t, eps, dalpha, dbeta, NORMALIZER: tl.constexpr):
    """Gradient of t."""
    if NORMALIZER == "divide":
        return -dalpha / ((t + eps) * (t + eps))
    elif NORMALIZER == "divide_clamped":
        clamped = tl.maximum(t, eps)
        return tl.where(t >= eps, -dalpha / (clamped * clamped), 0.0)
    elif NORMALIZER == "subtract":
        return -dbeta
    elif NORMALIZER == "magnitude_aware":
        return -dalpha / ((t + eps) * (t + eps)) - dbeta
    else:
        return tl.zeros_like(t)
