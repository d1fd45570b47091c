"""Random focal modulations, and the same by torch's own convolutions in NCHW."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.kernels.focal import focal_modulation


@dataclass(frozen=True)
class Case:
    """A map [B, H, W, C], a kernel size for each level, and whether the sum is divided by its terms."""

    shape: tuple[int, int, int, int]
    kernels: tuple[int, ...]
    normalize: bool
    seed: int

    def inputs(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Return the projected map, with one number a token that is not read, the weight and the bias that mix
        channels, and the depthwise kernels, all asking for gradients; contexts keep their scale.
        """
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        channels = self.shape[-1]
        projected = normal(*self.shape[:-1], 2 * channels + len(self.kernels) + 2)
        point = [channels**-0.5 * normal(channels, channels), normal(channels)]
        weights = [2 / k * normal(channels, 1, k, k) for k in self.kernels]
        return [x.to(dtype).requires_grad_() for x in (projected, *point, *weights)]

    def ours(self, projected: Tensor, point_weight: Tensor, point_bias: Tensor | None, *weights: Tensor) -> Tensor:
        """Call the operator."""
        return focal_modulation(projected, weights, point_weight, point_bias, self.normalize)

    def truth(self, projected: Tensor, point_weight: Tensor, point_bias: Tensor | None, *weights: Tensor) -> Tensor:
        """Compute the same with torch's convolutions and autograd."""
        channels, levels = self.shape[-1], len(self.kernels)
        query, z, gates, _ = projected.permute(0, 3, 1, 2).split((channels, channels, levels + 1, 1), 1)
        z = z.contiguous()
        terms = []
        for weight in weights:
            z = F.gelu(F.conv2d(z, weight, padding=weight.shape[-1] // 2, groups=len(weight)))
            terms.append(z)
        terms.append(F.gelu(z.mean((2, 3), keepdim=True)))
        total = sum(term * gates[:, i : i + 1] for i, term in enumerate(terms))
        total = total / len(terms) if self.normalize else total
        return (query * F.conv2d(total, point_weight[:, :, None, None], point_bias)).permute(0, 2, 3, 1)

    def __str__(self) -> str:
        shape, kernels = "x".join(map(str, self.shape)), ",".join(map(str, self.kernels))
        return f"{shape}-{kernels or 'none'}{'-normalized' * self.normalize}"
