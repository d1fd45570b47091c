"""What the pyramids that carry any mixer share: map sizes, which their tables of positions are made for."""

from collections.abc import Sequence

from timm.layers import to_2tuple

from ..pyramid import Pyramid


class SizedPyramid(Pyramid):
    """Pyramid of mixers, and maybe positions, with tables made for the maps of images of one size."""

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
