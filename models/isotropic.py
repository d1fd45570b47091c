"""The isotropic body: one resolution and one width throughout, on maps rather than token lists."""

from collections.abc import Callable

from timm.layers import calculate_drop_path_rates
from torch import nn

from ..layers import MixerBlock
from .backbone import Backbone


class Isotropic(Backbone):
    """A patch stem, then blocks that keep map and width.

    Args:
        dim, depth: channels, and number of blocks.
        stem: (in_chans, dim) -> module [B, in_chans, H, W] -> [B, h, w, dim], with an attribute `stride`.
        mixer: (index, dim) -> token mixer of that block.
        mlp: dim -> MLP.
        norm: dim -> norm of the blocks and before the head.
        layer_scale: initial layer scale, or None for none.
        post_norm: norm after mixer and MLP instead of before.
    """

    trunk = "blocks"
    feature_indices = (2, 5, 8, 11)

    def __init__(
        self,
        dim: int,
        depth: int,
        stem: Callable[[int, int], nn.Module],
        mixer: Callable[[int, int], nn.Module],
        mlp: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        layer_scale: float | None = None,
        post_norm: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(in_chans, num_classes, global_pool)
        self.stem = stem(in_chans, dim)
        drop_path = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(
            *(
                MixerBlock(dim, mixer(i, dim), mlp(dim), norm, layer_scale, rate, post_norm)
                for i, rate in enumerate(drop_path)
            )
        )
        self.feature_info = [
            {"num_chs": dim, "reduction": self.stem.stride, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.finish(norm(dim), drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return timm's patterns of parameter groups from stem to head, one group for each block."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}
