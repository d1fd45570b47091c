"""Focal modulation as a layer: one projection, contexts of growing reach, and their product with the query."""

import torch
from torch import Tensor, nn

from ..kernels.focal import focal_modulation
from .bias import Linear, linear
from .mixers import register_mixer


@register_mixer("focal")
class FocalModulation(nn.Module):
    """Multiply each token by a modulator of its surroundings, on a channels-last map: [B, H, W, C] -> [B, H, W, C].

    The state dict is that of the official module.

    Args:
        dim: channels C.
        focal_window: odd extent of the first level's depthwise kernel.
        focal_level: number of levels L.
        focal_factor: even number by which the kernels grow from level to level.
        bias: whether the projections before the product have a bias.
        use_postln_in_modulation: norm of the product, before the output projection.
        normalize_modulator: divide the gated sum of the contexts by L + 1.

    Raises:
        ValueError: a level's kernel has an even or no extent, or there is a negative number of levels.

    Source: arXiv 2203.11926 and microsoft/FocalNet.
    """

    def __init__(
        self,
        dim: int,
        focal_window: int = 3,
        focal_level: int = 2,
        focal_factor: int = 2,
        bias: bool = True,
        proj_drop: float = 0.0,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
    ):
        super().__init__()
        if focal_level < 0:
            raise ValueError(f"focal_level={focal_level} must be at least 0")
        kernels = [focal_window + focal_factor * level for level in range(focal_level)]
        if any(k % 2 == 0 or k < 1 for k in kernels):
            raise ValueError(
                f"focal_window={focal_window} and focal_factor={focal_factor} make kernels of {kernels}; all must be "
                "odd: an odd window of at least 1 and an even factor"
            )
        self.normalize_modulator = normalize_modulator
        self.f = nn.Linear(dim, 2 * dim + focal_level + 1, bias=bias)
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False)) for k in kernels
        )
        self.h = nn.Conv2d(dim, dim, 1, bias=bias)
        self.ln = nn.LayerNorm(dim) if use_postln_in_modulation else nn.Identity()
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        projected = aligned_linear(x, self.f.weight, self.f.bias)
        kernels = [layer[0].weight for layer in self.focal_layers]
        # A 1x1 convolution is a linear map of a channels-last map.
        point = self.h.weight.flatten(1)
        out = focal_modulation(projected, kernels, point, self.h.bias, self.normalize_modulator)
        return self.proj_drop(self.proj(self.ln(out)))


def aligned_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear map; on a GPU with repetitions of its last number after it, to rows that `aligned_width` says.

    Args:
        x: [..., C].
        weight: [D, C].
        bias: [D].

    Returns:
        [..., D], or on a GPU D rounded up.
    """
    spare = aligned_width(weight.shape[0]) - weight.shape[0] if x.is_cuda else 0
    if not spare:
        return linear(x, weight, bias)
    return linear(x, filled(weight, spare), None if bias is None else filled(bias, spare))


def filled(x: Tensor, spare: int) -> Tensor:
    """Return x with its last entry `spare` more times, which get no gradient: one kernel, where zeros take two."""
    return torch.cat((x, x[-1:].detach().expand(spare, *x.shape[1:])))


def aligned_width(width: int) -> int:
    """Return the width up to which a GPU fills rows.

    Triton takes rows for aligned, and loads 16 bytes at a time, where their stride is a multiple of 16. Of 195 numbers
    filled to 208 or 256, cuBLAS makes 401408 rows in 0.18 or 0.12 ms on an H200; of 771, 784 are the faster ones.
    """
    whole = -(-width // 256) * 256
    return whole if whole <= 512 and 3 * whole <= 4 * width else -(-width // 16) * 16
