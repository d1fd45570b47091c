"""The body of CSWin Transformer: overlapping patches, and attention in upright and lying stripes.

Dong et al., "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", arXiv 2107.00652, as
FLatten, Agent and InLine build it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import to_2tuple

from ...layers import CORES, Mlp, PatchDownsample, PatchStem
from .sized_pyramid import SizedPyramid, check_of_each_stage

TINY = {"depths": (2, 4, 18, 1), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
SMALL = {"depths": (3, 6, 29, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.4}
BASE = {"embed_dim": 96, "depths": (3, 6, 29, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
BASE_384 = {**BASE, "img_size": 384, "stripes": (1, 2, 12, None), "drop_path_rate": 0.7}

OFFICIAL_NAMES = [
    (r"^stage1_conv_embed\.0\.", "stem.conv."),
    (r"^stage1_conv_embed\.2\.", "stem.norm."),
    (r"^stage1_conv_embed\.", "stem."),
    (r"^merge(\d)\.", r"stages.\1.downsample."),
    (r"^stage(\d)\.(\d+)\.(qkv|proj)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.mixer.{m[3]}."),
    (r"^stage(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"\.attns\.(\d)\.get_v\.", r".mixer.branches.\1.lepe."),
    (r"\.attns\.(\d)\.", r".mixer.branches.\1.core."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


class CSwin(SizedPyramid):
    """Pyramid of CSwin, whose mixer is an attention core; the last stripes of a map may be narrower than the others.

    A mixer that is no core stands as it is, without stripes and the convolution of the values.

    Args:
        embed_dim: channels of the first stage, doubled from each to the next.
        depths, num_heads: blocks and heads of each stage.
        stripes, mixer_stripes: extent of the stripes of each stage, for softmax attention and for the mixer, None where
            attention is that of the whole map.
        kwargs: the rest of `SizedPyramid`'s arguments.
    """

    official_names = OFFICIAL_NAMES

    def __init__(
        self,
        mixer: str,
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 4, 18, 1),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        stripes: Sequence[int | None] = (1, 2, 7, None),
        mixer_stripes: Sequence[int | None] = (None, None, None, None),
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        check_of_each_stage(depths, stripes=stripes, mixer_stripes=mixer_stripes)

        def specify(stage: int, index: int, name: str) -> tuple[str, dict[str, Any]]:
            stripe = (stripes if name == "softmax" else mixer_stripes)[stage]
            return ("cross_shaped", {"core": name, "stripe": stripe}) if name in CORES else (name, {})

        super().__init__(
            mixer,
            specify,
            depths,
            num_heads,
            dims=[embed_dim * 2**stage for stage in range(len(depths))],
            stem=partial(PatchStem, patch=4, kernel=7, padding=2, ceil_mode=False),
            downsample=partial(PatchDownsample, kernel=3, padding=1, ceil_mode=False),
            mlp=lambda stage, dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            proj_drop_rate=proj_drop_rate,
            **kwargs,
        )

    @staticmethod
    def grids(img_size: int | tuple[int, int], stages: int) -> list[tuple[int, int]]:
        """Return the map size (H, W) of each stage."""
        first = [max((size + 1) // 4, 1) for size in to_2tuple(img_size)]
        return [tuple(-(-size // 2**stage) for size in first) for stage in range(stages)]
