"""Feature maps and normalisers of linear attention, by name: small functions on tensors of at least float32.

A feature map takes tokens [B, N, heads, D], its tensor (without a batch axis) or None, and a number, the power; it
returns features [B, N, heads, D']. A normaliser takes t [B, N, heads], what a query and all keys make together, and a
small number, eps; it returns the factors alpha of the keys' weighted sum and beta of the values' mean, or None where
they are 1 and 0. Their derivatives are taken by torch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FeatureMap = Callable[[Tensor, Tensor | None, float], Tensor]
Normalizer = Callable[[Tensor, float], tuple[Tensor | None, Tensor | None]]


def identity(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return the tokens as they are, as InLine attention does (arXiv 2412.06590)."""
    return x


def relu(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return max(x, 0), as L2ViT does (arXiv 2501.16182)."""
    return F.relu(x)


def leaky_relu(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return x where it is positive and 0.01 x elsewhere."""
    return F.leaky_relu(x)


def exponential(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return exp(0.2 x), InLine attention's option of that name."""
    return torch.exp(0.2 * x)


def elu(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return x where it is positive and exp(x) - 1 elsewhere."""
    return F.elu(x)


def elu_plus_one(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return elu(x) + 1 without cancellation: x + 1 where x is positive and exp(x) elsewhere (arXiv 2006.16236)."""
    return F.relu(x) + torch.exp(x.clamp(max=0))


def silu(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return x sigmoid(x), as LightNet does for queries (arXiv 2405.21022)."""
    return F.silu(x)


def focused(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return relu(x) + 1e-6, over softplus(`parameter`) [heads, D], turned towards its axes but as long as before.

    With |.| the norm over all heads together, y becomes |y| y^power / |y^power|. The largest channel is divided out
    before the power is taken: the quotient does not change, but neither underflows nor overflows.

    Source: FLatten Transformer, arXiv 2308.00442.
    """
    x = F.relu(x) + 1e-6
    if parameter is not None:
        x = x / F.softplus(parameter.to(x.dtype))
    channels = (-2, -1)
    raised = (x / x.detach().amax(channels, keepdim=True)) ** power
    length = torch.linalg.vector_norm(x, dim=channels, keepdim=True)
    return raised * (length / torch.linalg.vector_norm(raised, dim=channels, keepdim=True))


def unit(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return x / |x| of each head, as Cottention does (arXiv 2409.18747)."""
    return F.normalize(x, dim=-1)


def softmax_channels(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return the softmax over each head's channels, efficient attention's map of queries (arXiv 1812.01243)."""
    return x.softmax(-1)


def softmax_tokens(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return the softmax over tokens, channel by channel: efficient attention's map of keys (arXiv 1812.01243)."""
    return x.softmax(1)


def _split_signs(x: Tensor) -> Tensor:
    return torch.cat((F.relu(x), F.relu(-x)), -1)


def norm_aware_query(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return the positive and negative parts of x / |x|, raised to power (0.5 + tanh |x|): NaLaFormer's queries.

    Source: arXiv 2506.21137, with power 3.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    direction = x / length.clamp_min(torch.finfo(x.dtype).tiny)
    return _split_signs(direction) ** (power * (0.5 + torch.tanh(length)))


def norm_aware_key(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return the positive and negative parts of x, raised to a power: NaLaFormer's keys (arXiv 2506.21137)."""
    return _split_signs(x) ** power


def _project(x: Tensor, parameter: Tensor | None) -> Tensor:
    """Return x times a matrix [heads, D, F] of each head."""
    return x if parameter is None else torch.einsum("bnhd,hdf->bnhf", x, parameter.to(x.dtype))


def favor_query(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return Performer's positive random features of queries, stabilised by the largest feature of each token.

    `parameter` [heads, D, F] holds the random directions as columns. Source: FAVOR+, arXiv 2009.14794, as coded in
    lucidrains/performer-pytorch.
    """
    return _favor(x, parameter, (-1,))


def favor_key(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return Performer's positive random features of keys, stabilised by the largest feature of each head."""
    return _favor(x, parameter, (1, -1))


def _favor(x: Tensor, parameter: Tensor | None, stabilised: tuple[int, ...]) -> Tensor:
    x = x * x.shape[-1] ** -0.25
    projected = _project(x, parameter)
    half_square = x.square().sum(-1, keepdim=True) / 2
    top = projected.detach().amax(stabilised, keepdim=True)
    return (torch.exp(projected - half_square - top) + 1e-4) * projected.shape[-1] ** -0.5


def favor_relu(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return Performer's generalised features, relu of random projections [heads, D, F] plus 1e-3."""
    return F.relu(_project(x * x.shape[-1] ** -0.25, parameter)) + 1e-3


def hedgehog(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return softmax(y) and softmax(-y), at least 1e-12, of y = x times a learned matrix [heads, D, F].

    Source: arXiv 2402.04347, as coded in HazyResearch/lolcats.
    """
    y = _project(x, parameter)
    return torch.cat((y.softmax(-1), (-y).softmax(-1)), -1).clamp_min(1e-12)


def hedgehog_exponential(x: Tensor, parameter: Tensor | None, power: float) -> Tensor:
    """Return exp(y - max y) and exp(min y - y), at least 1e-12, of y = x times a learned matrix [heads, D, F]."""
    y = _project(x, parameter)
    rising, falling = y - y.amax(-1, keepdim=True), y.amin(-1, keepdim=True) - y
    return torch.cat((rising.exp(), falling.exp()), -1).clamp_min(1e-12)


FEATURE_MAPS: dict[str, FeatureMap] = {
    function.__name__: function
    for function in (
        identity, relu, leaky_relu, exponential, elu, elu_plus_one, silu, focused, unit, softmax_channels,
        softmax_tokens, norm_aware_query, norm_aware_key, favor_query, favor_key, favor_relu, hedgehog,
        hedgehog_exponential,
    )
}  # fmt: skip

ACROSS_TOKENS = {"softmax_tokens", "favor_key"}
"""Maps in which a token's features depend on the other tokens; the others can be taken token by token."""


def none(t: Tensor, eps: float) -> tuple[None, None]:
    """Weights as the features give them."""
    return None, None


def divide(t: Tensor, eps: float) -> tuple[Tensor, None]:
    """Weights that sum to one by division: alpha = 1 / (t + eps)."""
    return 1 / (t + eps), None


def divide_clamped(t: Tensor, eps: float) -> tuple[Tensor, None]:
    """Weights divided by their sum where it is more than eps: alpha = 1 / max(t, eps). L2ViT has eps = 100."""
    return 1 / t.clamp_min(eps), None


def subtract(t: Tensor, eps: float) -> tuple[None, Tensor]:
    """Weights that sum to one by subtraction: beta = 1 - t. Source: InLine attention, arXiv 2412.06590."""
    return None, 1 - t


def magnitude_aware(t: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Weights scaled and shifted to sum to one: alpha = 1 + 1 / (t + eps), beta = -t.

    Source: MALA, arXiv 2507.00698.
    """
    return 1 + 1 / (t + eps), -t


NORMALIZERS: dict[str, Normalizer] = {
    function.__name__: function for function in (none, divide, divide_clamped, subtract, magnitude_aware)
}
