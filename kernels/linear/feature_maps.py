"""Feature maps and normalisers of linear attention, by name: small functions on tensors of at least float32.

A feature map takes tokens [B, N, heads, D], its tensor (without a batch axis) or None, and a number, the power. It
returns features [B, N, heads, D'] and the function that takes their gradient back, to that of the tokens and that of
the tensor (None without one).

A normaliser takes t [B, N, heads], what a query and all keys make together, and a small number, eps. It returns the
factors alpha of the keys' weighted sum and beta of the values' mean, None where they are 1 and 0, and the function that
takes their gradients back to that of t.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pullback = Callable[[Tensor], tuple[Tensor, Tensor | None]]
FeatureMap = Callable[[Tensor, Tensor | None, float], tuple[Tensor, Pullback]]
Factors = tuple[Tensor | None, Tensor | None]
Normalizer = Callable[[Tensor, float], tuple[Tensor | None, Tensor | None, Callable[[Factors], Tensor]]]


def identity(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return the tokens as they are, as InLine attention does (arXiv 2412.06590)."""
    return x, lambda d: (d, None)


def relu(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return max(x, 0), as L2ViT does (arXiv 2501.16182)."""
    return F.relu(x), lambda d: (d * (x > 0), None)


def leaky_relu(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return x where it is positive and 0.01 x elsewhere."""
    return F.leaky_relu(x), lambda d: (torch.where(x > 0, d, 0.01 * d), None)


def exponential(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return exp(0.2 x), InLine attention's option of that name."""
    y = torch.exp(0.2 * x)
    return y, lambda d: (0.2 * d * y, None)


def elu(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return x where it is positive and exp(x) - 1 elsewhere."""
    return F.elu(x), lambda d: (d * torch.exp(x.clamp(max=0)), None)


def elu_plus_one(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return elu(x) + 1 without cancellation: x + 1 where x is positive and exp(x) elsewhere (arXiv 2006.16236)."""
    below = torch.exp(x.clamp(max=0))
    return F.relu(x) + below, lambda d: (d * below, None)


def silu(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return x sigmoid(x), as LightNet does for queries (arXiv 2405.21022)."""
    gate = torch.sigmoid(x)
    return x * gate, lambda d: (d * gate * (1 + x * (1 - gate)), None)


def focused(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return y = relu(x) + 1e-6, over softplus(`parameter`) [heads, D], turned towards its axes but as long as before.

    With |.| the norm over all heads together it is |y| y^power / |y^power|. Before the power is taken, tokens are
    scaled so that their largest channels are alike: the quotient does not change, but neither underflows nor overflows,
    and the squares of the many 1e-6 stay clear of subnormal numbers, which processors are slow with.

    Source: FLatten Transformer, arXiv 2308.00442.
    """
    channels = (-2, -1)
    y = F.relu(x) + 1e-6
    scale = None if parameter is None else F.softplus(parameter.to(x.dtype))
    if scale is not None:
        y = y / scale
    lift = 2.0 ** int(40 / power) / y.detach().amax(channels, keepdim=True)
    steep = y * lift
    raised = steep**power
    length = torch.linalg.vector_norm(y, dim=channels, keepdim=True)
    shrunk = torch.linalg.vector_norm(raised, dim=channels, keepdim=True)

    def pullback(d: Tensor) -> tuple[Tensor, Tensor | None]:
        along = (d * raised).sum(channels, keepdim=True)
        draised = (d - raised * (along / shrunk**2)) * (length / shrunk)
        dy = draised * steep ** (power - 1) * (power * lift) + y * (along / (shrunk * length))
        if scale is None:
            return dy * (x > 0), None
        dy = dy / scale
        return dy * (x > 0), -(dy * y).sum((0, 1)) * torch.sigmoid(parameter.to(x.dtype))

    return raised * (length / shrunk), pullback


def unit(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return x / |x| of each head, as Cottention does (arXiv 2409.18747)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
    y = x / length
    return y, lambda d: ((d - y * (y * d).sum(-1, keepdim=True)) / length, None)


def _softmax(x: Tensor, axis: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    y = x.softmax(axis)
    return y, lambda d: y * (d - (y * d).sum(axis, keepdim=True))


def softmax_channels(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return the softmax over each head's channels, efficient attention's map of queries (arXiv 1812.01243)."""
    y, back = _softmax(x, -1)
    return y, lambda d: (back(d), None)


def softmax_tokens(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return the softmax over tokens, channel by channel: efficient attention's map of keys (arXiv 1812.01243)."""
    y, back = _softmax(x, 1)
    return y, lambda d: (back(d), None)


def _split_signs(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the positive and the negative part of x, side by side."""

    def pullback(d: Tensor) -> Tensor:
        positive, negative = d.chunk(2, -1)
        return torch.where(x > 0, positive, torch.where(x < 0, -negative, 0.0))

    return torch.cat((F.relu(x), F.relu(-x)), -1), pullback


def norm_aware_query(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return the positive and negative parts of x / |x|, raised to power (0.5 + tanh |x|): NaLaFormer's queries.

    Source: arXiv 2506.21137, with power 3.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    direction = x / length
    parts, back = _split_signs(direction)
    bent = torch.tanh(length)
    exponent = power * (0.5 + bent)
    y = parts**exponent

    def pullback(d: Tensor) -> tuple[Tensor, None]:
        weighted = d * y
        ddirection = back(exponent * weighted / parts.clamp_min(torch.finfo(x.dtype).tiny))
        dexponent = torch.special.xlogy(weighted, torch.where(parts > 0, parts, 1.0)).sum(-1, keepdim=True)
        dlength = dexponent * power * (1 - bent**2)
        inward = (direction * ddirection).sum(-1, keepdim=True)
        return (ddirection - direction * inward) / length + dlength * direction, None

    return y, pullback


def norm_aware_key(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return the positive and negative parts of x, raised to a power: NaLaFormer's keys (arXiv 2506.21137)."""
    parts, back = _split_signs(x)
    return parts**power, lambda d: (back(d * power * parts ** (power - 1)), None)


def _project(x: Tensor, parameter: Tensor | None) -> tuple[Tensor, Pullback]:
    """Return x times a matrix [heads, D, F] of each head, or x without one."""
    if parameter is None:
        return x, lambda d: (d, None)
    matrix = parameter.to(x.dtype)

    def pullback(d: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("bnhf,hdf->bnhd", d, matrix), torch.einsum("bnhd,bnhf->hdf", x, d)

    return torch.einsum("bnhd,hdf->bnhf", x, matrix), pullback


def _favor(x: Tensor, parameter: Tensor | None, stabilised: tuple[int, ...]) -> tuple[Tensor, Pullback]:
    scale = x.shape[-1] ** -0.25
    x = x * scale
    projected, back = _project(x, parameter)
    shrink = projected.shape[-1] ** -0.5
    top = projected.detach().amax(stabilised, keepdim=True)
    y = torch.exp(projected - x.square().sum(-1, keepdim=True) / 2 - top)

    def pullback(d: Tensor) -> tuple[Tensor, Tensor | None]:
        d = d * y * shrink
        dx, dparameter = back(d)
        return (dx - x * d.sum(-1, keepdim=True)) * scale, dparameter

    return (y + 1e-4) * shrink, pullback


def favor_query(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return Performer's positive random features of queries, stabilised by the largest feature of each token.

    `parameter` [heads, D, F] holds the random directions as columns. What stabilises is a constant to the gradient.
    Source: FAVOR+, arXiv 2009.14794, as coded in lucidrains/performer-pytorch.
    """
    return _favor(x, parameter, (-1,))


def favor_key(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return Performer's positive random features of keys, stabilised by the largest feature of each head."""
    return _favor(x, parameter, (1, -1))


def favor_relu(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return Performer's generalised features, relu of random projections [heads, D, F] plus 1e-3."""
    scale = x.shape[-1] ** -0.25
    projected, back = _project(x * scale, parameter)

    def pullback(d: Tensor) -> tuple[Tensor, Tensor | None]:
        dx, dparameter = back(d * (projected > 0))
        return dx * scale, dparameter

    return F.relu(projected) + 1e-3, pullback


def hedgehog(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return softmax(y) and softmax(-y), at least 1e-12, of y = x times a learned matrix [heads, D, F].

    Source: arXiv 2402.04347, as coded in HazyResearch/lolcats.
    """
    projected, back = _project(x, parameter)
    rising, of_rising = _softmax(projected, -1)
    falling, of_falling = _softmax(-projected, -1)
    y = torch.cat((rising, falling), -1)

    def pullback(d: Tensor) -> tuple[Tensor, Tensor | None]:
        up, down = (d * (y >= 1e-12)).chunk(2, -1)
        return back(of_rising(up) - of_falling(down))

    return y.clamp_min(1e-12), pullback


def hedgehog_exponential(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return exp(y - max y) and exp(min y - y), at least 1e-12, of y = x times a learned matrix [heads, D, F]."""
    projected, back = _project(x, parameter)
    top, bottom = projected.amax(-1, keepdim=True), projected.amin(-1, keepdim=True)
    y = torch.exp(torch.cat((projected - top, bottom - projected), -1))

    def pullback(d: Tensor) -> tuple[Tensor, Tensor | None]:
        up, down = (d * y * (y >= 1e-12)).chunk(2, -1)
        # Where several channels are the largest or the smallest they share its gradient, as in torch.amax.
        is_top, is_bottom = projected == top, projected == bottom
        dtop = up.sum(-1, keepdim=True) / is_top.sum(-1, keepdim=True)
        dbottom = down.sum(-1, keepdim=True) / is_bottom.sum(-1, keepdim=True)
        return back(up - down - dtop * is_top + dbottom * is_bottom)

    return y.clamp_min(1e-12), pullback


def hedgehog_half(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return softmax(y), at least 1e-12, of y = x times a learned matrix [heads, D, F]."""
    projected, back = _project(x, parameter)
    y, of_softmax = _softmax(projected, -1)
    return y.clamp_min(1e-12), lambda d: back(of_softmax(d * (y >= 1e-12)))


def transformer_to_rnn(x: Tensor, parameter: Tensor | None, power: float) -> tuple[Tensor, Pullback]:
    """Return relu(y), at least 1e-12, of y = x times a learned matrix [heads, D, F] (T2R, arXiv 2103.13076)."""
    projected, back = _project(x, parameter)
    return F.relu(projected).clamp_min(1e-12), lambda d: back(d * (projected >= 1e-12))


FEATURE_MAPS: dict[str, FeatureMap] = {
    function.__name__: function
    for function in (
        identity, relu, leaky_relu, exponential, elu, elu_plus_one, silu, focused, unit, softmax_channels,
        softmax_tokens, norm_aware_query, norm_aware_key, favor_query, favor_key, favor_relu, hedgehog,
        hedgehog_exponential, hedgehog_half, transformer_to_rnn,
    )
}  # fmt: skip

WITH_VECTOR = {"focused"}
"""Maps with a tensor [heads, D]."""

WITH_MATRIX = {
    "favor_query", "favor_key", "favor_relu", "hedgehog", "hedgehog_exponential", "hedgehog_half", "transformer_to_rnn",
}  # fmt: skip
"""Maps with a tensor [heads, D, F], or None for the identity."""

DOUBLING = {"norm_aware_query", "norm_aware_key", "hedgehog", "hedgehog_exponential"}
"""Maps that make two features of each channel."""

ACROSS_TOKENS = {"softmax_tokens", "favor_key"}
"""Maps in which a token's features depend on the other tokens; the others can be taken token by token."""


def width(name: str, channels: int, parameter_shape: Sequence[int] | None) -> int:
    """Return how many features a map makes of the channels of a head."""
    made = parameter_shape[-1] if name in WITH_MATRIX and parameter_shape is not None else channels
    return 2 * made if name in DOUBLING else made


def none(t: Tensor, eps: float) -> tuple[None, None, Callable[[Factors], Tensor]]:
    """Weights as the features give them."""
    return None, None, lambda d: torch.zeros_like(t)


def divide(t: Tensor, eps: float) -> tuple[Tensor, None, Callable[[Factors], Tensor]]:
    """Weights that sum to one by division: alpha = 1 / (t + eps)."""
    alpha = 1 / (t + eps)
    return alpha, None, lambda d: -d[0] * alpha**2


def divide_clamped(t: Tensor, eps: float) -> tuple[Tensor, None, Callable[[Factors], Tensor]]:
    """Weights divided by their sum where it is more than eps: alpha = 1 / max(t, eps). L2ViT has eps = 100."""
    alpha = 1 / t.clamp_min(eps)
    return alpha, None, lambda d: -d[0] * alpha**2 * (t >= eps)


def subtract(t: Tensor, eps: float) -> tuple[None, Tensor, Callable[[Factors], Tensor]]:
    """Weights that sum to one by subtraction: beta = 1 - t. Source: InLine attention, arXiv 2412.06590."""
    return None, 1 - t, lambda d: -d[1]


def magnitude_aware(t: Tensor, eps: float) -> tuple[Tensor, Tensor, Callable[[Factors], Tensor]]:
    """Weights scaled and shifted to sum to one: alpha = 1 + 1 / (t + eps), beta = -t.

    Source: MALA, arXiv 2507.00698.
    """
    inverse = 1 / (t + eps)
    return 1 + inverse, -t, lambda d: -d[0] * inverse**2 - d[1]


NORMALIZERS: dict[str, Normalizer] = {
    function.__name__: function for function in (none, divide, divide_clamped, subtract, magnitude_aware)
}
