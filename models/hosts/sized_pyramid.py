"""What the pyramids that carry any mixer share: which block has which, and the map sizes that tables are made for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.layers import to_2tuple
from torch import nn

from ...layers import build_mixer, check_mixer
from ..pyramid import Pyramid
from .letters import mixers_of_blocks, of_each_stage

Specify = Callable[[int, int, str], tuple[str, dict[str, Any]]]


class SizedPyramid(Pyramid):
    """Pyramid whose blocks have a mixer of choice or softmax attention, made for images of `img_size`.

    Other sizes work: tables of positions are resampled for them, at each call, or for good by `set_input_size`.

    Args:
        mixer: name of the mixer in the blocks whose letter asks for it, one or one for each stage.
        specify: (stage, index, name) -> the entry of `MIXERS` that does it in this body, and what the body offers it;
            "softmax" stands for the attention that the body is published with.
        depths, num_heads: blocks and heads of each stage.
        attn_type: one letter a stage, as `mixers_of_blocks` reads them; default the mixer everywhere.
        mixer_kwargs: hyper-parameters of the mixer, one mapping for each stage or for all.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `drop_path_rate`, `in_chans`, `out_norms`.

    Raises:
        ValueError: arguments of stages do not match `depths`, or no mixer has that name or such a hyper-parameter.
    """

    def __init__(
        self,
        mixer: str | Sequence[str],
        specify: Specify,
        depths: Sequence[int],
        num_heads: Sequence[int],
        attn_type: str = "",
        mixer_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ):
        check_of_each_stage(depths, num_heads=num_heads)
        stages = len(depths)
        mixers = of_each_stage("mixer", mixer, str, stages)
        for name in mixers:
            check_mixer(name)
        names = mixers_of_blocks(attn_type or "L" * stages, depths, mixers)
        options = of_each_stage("mixer_kwargs", mixer_kwargs or {}, Mapping, stages)
        grids = self.grids(img_size, stages)

        def build(stage: int, index: int, dim: int) -> nn.Module:
            new = names[stage][index] == mixers[stage]
            name, offers = specify(stage, index, names[stage][index])
            general = {
                "num_heads": num_heads[stage],
                "grid": grids[stage],
                "qkv_bias": qkv_bias,
                "proj_drop": proj_drop_rate,
            }
            return build_mixer(name, dim, offers=general | offers, **(options[stage] if new else {}))

        super().__init__(depths=depths, mixer=build, **kwargs)

    @staticmethod
    def grids(img_size: int | tuple[int, int], stages: int) -> list[tuple[int, int]]:
        """Return the map size (H, W) of each stage; what is padded or overlaps rounds it up."""
        return [tuple(-(-size // (4 * 2**stage)) for size in to_2tuple(img_size)) for stage in range(stages)]

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample all tables of positions for images of `img_size`."""
        for stage, grid in zip(self.stages, self.grids(img_size, len(self.stages)), strict=True):
            for module in (stage.position, *(block.mixer for block in stage.blocks)):
                if hasattr(module, "set_grid"):
                    module.set_grid(grid)


def check_of_each_stage(depths: Sequence[int], **arguments: Sequence) -> None:
    """Check that arguments have one value for each stage.

    Raises:
        ValueError: one has not; the message names it.
    """
    for name, values in arguments.items():
        if len(values) != len(depths):
            raise ValueError(f"{name}={tuple(values)} must be one for each stage of depths={tuple(depths)}")
