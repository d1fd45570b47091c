"""The body of PVTv2: overlapping patches, convolutions in the MLP for positions, and a norm after every stage.

Wang et al., "PVT v2", arXiv 2106.13797, as FLatten builds it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from ...layers import ConvMLP, PatchDownsample, PatchStem, fan_out_normal_
from .pvt import LARGE, MEDIUM, PVT, SMALL, TINY
from .sized_pyramid import SizedPyramid

B0 = {**TINY, "embed_dims": (32, 64, 160, 256)}
B1, B2, B3, B4 = TINY, SMALL, MEDIUM, LARGE


class PVTv2(PVT):
    """Pyramid of PVTv2 with a mixer of choice; arguments as for `PVT`."""

    def __init__(self, mixer: str, **kwargs: Any):
        super().__init__(mixer, **kwargs)
        for part in (self.stem, self.stages):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    fan_out_normal_(module)

    def parts(self, mlp_ratios: Sequence[float], grids: Sequence[tuple[int, int]], drop: float) -> dict[str, Any]:
        """Return what surrounds the mixers, as `Pyramid` takes it; nothing here depends on the grids."""
        return {
            "stem": partial(PatchStem, patch=4, kernel=7, padding=3, ceil_mode=False),
            "downsample": partial(PatchDownsample, patch=2, kernel=3, padding=1, ceil_mode=False),
            "mlp": lambda stage, dim: ConvMLP(dim, int(dim * mlp_ratios[stage]), drop=drop),
            "stage_norm": partial(nn.LayerNorm, eps=1e-6),
            # The last stage's norm is the one before the head.
            "final_norm": lambda dim: nn.Identity(),
        }

    grids = staticmethod(SizedPyramid.grids)
