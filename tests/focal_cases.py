"""Random focal modulations, and focal modulation by torch's own convolutions in NCHW."""

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
        """Return the context, the gates and the kernels, all asking for gradients; contexts keep their scale."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        maps = [normal(*self.shape), normal(*self.shape[:-1], len(self.kernels) + 1)]
        weights = [2 / k * normal(self.shape[-1], 1, k, k) for k in self.kernels]
        return [x.to(dtype).requires_grad_() for x in (*maps, *weights)]

    def ours(self, context: Tensor, gates: Tensor, *weights: Tensor) -> Tensor:
        """Call the operator."""
        return focal_modulation(context, gates, weights, self.normalize)

    def truth(self, context: Tensor, gates: Tensor, *weights: Tensor) -> Tensor:
        """Compute the same with torch's convolutions and autograd."""
        z, gates = context.permute(0, 3, 1, 2).contiguous(), gates.permute(0, 3, 1, 2)
        terms = []
        for weight in weights:
            z = F.gelu(F.conv2d(z, weight, padding=weight.shape[-1] // 2, groups=len(weight)))
            terms.append(z)
        terms.append(F.gelu(z.mean((2, 3), keepdim=True)))
        total = sum(term * gates[:, i : i + 1] for i, term in enumerate(terms))
        return (total / len(terms) if self.normalize else total).permute(0, 2, 3, 1)

    def __str__(self) -> str:
        shape, kernels = "x".join(map(str, self.shape)), ",".join(map(str, self.kernels))
        return f"{shape}-{kernels or 'none'}{'-normalized' * self.normalize}"
