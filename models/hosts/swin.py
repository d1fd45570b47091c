"""The body of Swin Transformer: a map at once, patches merged by linear layers, and softmax attention in windows.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030, as FLatten,
Agent and InLine build it.
"""

from collections.abc import Sequence
from typing import Any

from ...layers import Mlp, PatchMerging, PatchStem
from .sized_pyramid import SizedPyramid

TINY = {"drop_path_rate": 0.2}
SMALL = {"depths": (2, 2, 18, 2), "drop_path_rate": 0.3}
BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
SMALL_288 = {**SMALL, "img_size": 288, "window": 9}
BASE_384 = {**BASE, "img_size": 384, "window": 12}

OFFICIAL_NAMES = [
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.", "stem."),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
    (r"\.attn\.relative_position_bias_table$", ".mixer.rpb"),
    (r"^norm(\d)\.", r"out_norms.\1."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


class Swin(SizedPyramid):
    """Pyramid of Swin, whose mixer sees the whole map, and whose softmax attention windows of it.

    Every other block of a stage shifts the windows. What does not fill a patch or a window is padded at the bottom and
    right.

    Args:
        embed_dim: channels of the first stage, doubled from each to the next.
        depths, num_heads: blocks and heads of each stage.
        window: extent of the windows.
        fit: whether maps no larger than a window are one window, not shifted, as classifiers have it, or padded and
            shifted as any other, as detection and segmentation backbones do; those with `out_norms` do unless told.
        kwargs: the rest of `SizedPyramid`'s arguments.
    """

    official_names = OFFICIAL_NAMES

    def __init__(
        self,
        mixer: str,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        fit: bool | None = None,
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        out_norms: bool | Sequence[int] = False,
        **kwargs: Any,
    ):
        fit = not out_norms if fit is None else fit

        def specify(stage: int, index: int, name: str) -> tuple[str, dict[str, Any]]:
            windows = {"window": window, "shift": index % 2 == 1, "fit": fit}
            return ("window", windows) if name in ("softmax", "window") else (name, {})

        super().__init__(
            mixer,
            specify,
            depths,
            num_heads,
            dims=[embed_dim * 2**stage for stage in range(len(depths))],
            stem=PatchStem,
            downsample=PatchMerging,
            mlp=lambda stage, dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            proj_drop_rate=proj_drop_rate,
            out_norms=out_norms,
            **kwargs,
        )

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}
