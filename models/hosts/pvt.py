"""The body of PVT: a position table in every stage, and no norm before the head.

Wang et al., "Pyramid Vision Transformer", arXiv 2102.12122, as FLatten, Agent and InLine build it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import to_2tuple
from torch import nn

from ...layers import Mlp, PatchDownsample, PatchStem, PositionTable
from .sized_pyramid import SizedPyramid, check_of_each_stage

TINY = {"depths": (2, 2, 2, 2), "drop_path_rate": 0.1}
SMALL = {"depths": (3, 4, 6, 3), "drop_path_rate": 0.1}
MEDIUM = {"depths": (3, 4, 18, 3), "drop_path_rate": 0.3}
LARGE = {"depths": (3, 8, 27, 3), "drop_path_rate": 0.3}

OFFICIAL_NAMES = [
    (r"^patch_embed1\.proj\.", "stem.conv."),
    (r"^patch_embed1\.", "stem."),
    (r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
    (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    (r"^pos_embed(\d)$", lambda m: f"stages.{int(m[1]) - 1}.position.table"),
    (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


class PVT(SizedPyramid):
    """Pyramid of PVT; what does not fill a patch is dropped at the bottom and right, as the official code does.

    Args:
        embed_dims, depths, num_heads, mlp_ratios: channels, blocks, heads and hidden channels over channels of each
            stage.
        sr_ratios, mixer_sr_ratios: reduction of the keys' map of each stage, for softmax attention and for the mixer.
        kwargs: the rest of `SizedPyramid`'s arguments.
    """

    official_names = OFFICIAL_NAMES

    def __init__(
        self,
        mixer: str,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mixer_sr_ratios: Sequence[int] = (1, 1, 1, 1),
        proj_drop_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ):
        check_of_each_stage(depths, mlp_ratios=mlp_ratios, sr_ratios=sr_ratios, mixer_sr_ratios=mixer_sr_ratios)

        def specify(stage: int, index: int, name: str) -> tuple[str, dict[str, Any]]:
            return name, {"sr_ratio": (sr_ratios if name == "softmax" else mixer_sr_ratios)[stage]}

        super().__init__(
            mixer,
            specify,
            depths,
            num_heads,
            dims=embed_dims,
            norm=partial(nn.LayerNorm, eps=1e-6),
            proj_drop_rate=proj_drop_rate,
            img_size=img_size,
            **{**self.parts(mlp_ratios, self.grids(img_size, len(depths)), proj_drop_rate), **kwargs},
        )

    def parts(self, mlp_ratios: Sequence[float], grids: Sequence[tuple[int, int]], drop: float) -> dict[str, Any]:
        """Return what surrounds the mixers, as `Pyramid` takes it."""
        return {
            "stem": partial(PatchStem, patch=4, ceil_mode=False),
            "downsample": partial(PatchDownsample, ceil_mode=False),
            "mlp": lambda stage, dim: Mlp(dim, int(dim * mlp_ratios[stage]), drop=drop),
            "position": lambda stage, dim: PositionTable(dim, grids[stage]),
            "final_norm": lambda dim: nn.Identity(),
        }

    @staticmethod
    def grids(img_size: int | tuple[int, int], stages: int) -> list[tuple[int, int]]:
        """Return the map size (H, W) of each stage; what does not fill a patch is dropped."""
        return [tuple(max(size // (4 * 2**stage), 1) for size in to_2tuple(img_size)) for stage in range(stages)]
