"""The body of Swin Transformer: a map at once, patches merged by linear layers, and softmax attention in windows.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030, as FLatten,
Agent and InLine build it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...layers import Mlp, PatchMerging, PatchStem, WindowAttention, build_mixer
from .letters import mixers_of_blocks, of_each_stage
from .sized_pyramid import SizedPyramid, check_of_each_stage

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
    """Pyramid of Swin with a mixer of choice, made for images of `img_size`.

    The mixer sees the whole map, and blocks with softmax attention windows of it, which every other block shifts. Other
    sizes work: tables of positions are resampled for them, at each call, or for good by `set_input_size`, and what
    does not fill a patch or a window is padded at the bottom and right.

    Args:
        mixer: name of the mixer in the blocks that have it.
        attn_type: one letter a stage, as `mixers_of_blocks` reads them; default the mixer everywhere.
        mixer_options: what else the mixer is built with, one mapping for each stage or for all.
        embed_dim: channels of the first stage, doubled from each to the next.
        depths, num_heads: blocks and heads of each stage.
        window: extent of the windows of softmax attention.
        fit: whether maps no larger than a window are one window, not shifted, as classifiers have it, or padded and
            shifted as any other, as detection and segmentation backbones do; those with `out_norms` do unless told.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `drop_path_rate`, `in_chans`.

    Raises:
        ValueError: arguments of stages do not match `depths`.
    """

    official_names = OFFICIAL_NAMES

    def __init__(
        self,
        mixer: str,
        attn_type: str = "",
        mixer_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        fit: bool | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        out_norms: bool | Sequence[int] = False,
        **kwargs: Any,
    ):
        stages = len(depths)
        check_of_each_stage(depths, num_heads=num_heads)
        names = mixers_of_blocks(attn_type or "L" * stages, depths, mixer)
        options = of_each_stage(mixer_options, stages)
        grids = self.grids(img_size, stages)
        projections = {"qkv_bias": qkv_bias, "proj_drop": proj_drop_rate}

        def build(stage: int, index: int, dim: int) -> nn.Module:
            heads = num_heads[stage]
            if names[stage][index] == mixer:
                return build_mixer(mixer, dim, heads, grid=grids[stage], **projections, **options[stage])
            alone = not out_norms if fit is None else fit
            return WindowAttention(dim, heads, window, shift=index % 2 == 1, fit=alone, **projections)

        super().__init__(
            dims=[embed_dim * 2**i for i in range(stages)],
            depths=depths,
            stem=PatchStem,
            downsample=PatchMerging,
            mixer=build,
            mlp=lambda stage, dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            out_norms=out_norms,
            **kwargs,
        )

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}
