"""The plain four-stage body: nothing but what every pyramid has, so that what differs is the mixer.

Overlapping convolutions as the stem and between the stages, pre-norm blocks, and MLPs; no positions of its own.
"""

from collections.abc import Sequence
from typing import Any

from ...layers import ConvDownsample, ConvTokenizer, Mlp
from .sized_pyramid import SizedPyramid


class PlainPyramid(SizedPyramid):
    """Pyramid of a mixer of choice between the same parts for all.

    Args:
        mixer: name of the mixer, one or one for each stage; "window" has every other block shift the windows.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        mlp_ratio: hidden channels of the MLP over channels.
        kwargs: the rest of `SizedPyramid`'s arguments, e.g. `mixer_kwargs`, `img_size`, `drop_path_rate`.
    """

    def __init__(
        self,
        mixer: str | Sequence[str],
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float = 3.0,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        def specify(stage: int, index: int, name: str) -> tuple[str, dict[str, Any]]:
            return name, {"shift": index % 2 == 1}

        super().__init__(
            mixer,
            specify,
            depths,
            num_heads,
            dims=embed_dims,
            stem=ConvTokenizer,
            downsample=ConvDownsample,
            mlp=lambda stage, dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            proj_drop_rate=proj_drop_rate,
            **kwargs,
        )
