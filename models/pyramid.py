"""The four-stage body: maps at strides 4, 8, 16 and 32 of the image, wider as they get smaller."""

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import calculate_drop_path_rates, to_ntuple
from torch import Tensor, nn

from ..layers import MixerBlock
from .backbone import Backbone

Norm = Callable[[int], nn.Module]


class Stage(nn.Module):
    """A downsampler (none in the first stage), blocks, and positions before and a norm after them in some families."""

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        position: nn.Module | None = None,
    ):
        super().__init__()
        self.downsample = downsample
        self.position = position or nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.norm(self.blocks(self.position(self.downsample(x))))


def _out_norms(stages: bool | Sequence[int], dims: Sequence[int], norm: Norm) -> nn.ModuleList | None:
    """Return a norm for each stage, or for those named and nothing for the others, or None for no norms."""
    if not isinstance(stages, bool) and not set(stages) <= set(range(len(dims))):
        raise ValueError(f"out_norms={tuple(stages)} must be a bool, or stages among {tuple(range(len(dims)))}")
    normed = range(len(dims)) if stages is True else stages or ()
    return nn.ModuleList(norm(d) if i in normed else nn.Identity() for i, d in enumerate(dims)) if normed else None


class Pyramid(Backbone):
    """Stages of blocks with a downsampler before each but the first; a family supplies the parts as builders.

    Args:
        dims, depths: channels and number of blocks of each stage.
        stem: (in_chans, dim) -> module [B, in_chans, H, W] -> [B, h, w, dim], with an attribute `stride`.
        downsample: (in_dim, dim) -> module that halves a map.
        mixer: (stage, index, dim) -> token mixer of that block, or None for a block without one.
        mlp: (stage, dim) -> MLP, or None for blocks without one.
        norm: dim -> norm of the blocks, one or one for each stage.
        out_dims: channels that each stage ends with, where a family changes its last block after this; default `dims`.
        stage_norm: dim -> norm at the end of each stage, part of what flows on; None for none.
        final_norm: dim -> norm before the head; default `norm`, of the last stage.
        position: (stage, dim) -> module that adds positions to a map before the blocks of that stage; None for none.
        layer_scale: initial layer scale, one value or one for each stage; None for none.
        post_norm: norm after mixer and MLP instead of before, or "sum" of `MixerBlock`; one or one for each stage.
        extras: (stage, index, dim, rate of stochastic depth) -> what else `MixerBlock` takes for that block; None for
            nothing.
        out_norms: give each feature map a norm of its own, or only those of the stages named, as detection and
            segmentation backbones do; it touches only what `forward_intermediates` and `features_only` return, not what
            flows on.
        out_norm: dim -> such a norm.
        output_stride: 32, the only one there is.

    Raises:
        ValueError: `dims` and `depths` differ in length, `out_norms` names a stage there is not, or another
            `output_stride`.
    """

    trunk = "stages"
    feature_indices = (0, 1, 2, 3)

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        stem: Callable[[int, int], nn.Module],
        downsample: Callable[[int, int], nn.Module],
        mixer: Callable[[int, int, int], nn.Module | None],
        mlp: Callable[[int, int], nn.Module | None],
        norm: Norm | Sequence[Norm] = nn.LayerNorm,
        out_dims: Sequence[int] | None = None,
        stage_norm: Norm | None = None,
        final_norm: Norm | None = None,
        position: Callable[[int, int], nn.Module] | None = None,
        layer_scale: float | Sequence[float | None] | None = None,
        post_norm: bool | str | Sequence[bool | str] = False,
        extras: Callable[[int, int, int, float], dict[str, nn.Module]] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool | Sequence[int] = False,
        out_norm: Norm = nn.LayerNorm,
        output_stride: int = 32,
    ):
        super().__init__(in_chans, num_classes, global_pool)
        if len(dims) != len(depths):
            raise ValueError(f"dims={tuple(dims)} and depths={tuple(depths)} must be of one length")
        if output_stride != 32:
            raise ValueError(f"output_stride={output_stride} must be 32; choose among the strides with out_indices")
        out_dims = dims if out_dims is None else out_dims
        self.stem = stem(in_chans, dims[0])
        drop_path = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        layer_scale, norm, post_norm = (to_ntuple(len(dims))(given) for given in (layer_scale, norm, post_norm))
        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                MixerBlock(
                    dim,
                    mixer(i, j, dim),
                    mlp(i, dim),
                    norm[i],
                    layer_scale[i],
                    rate,
                    post_norm[i],
                    **(extras(i, j, dim, rate) if extras else {}),
                )
                for j, rate in enumerate(drop_path[i])
            ]
            stages.append(
                Stage(
                    downsample(out_dims[i - 1], dim) if i else nn.Identity(),
                    blocks,
                    stage_norm(out_dims[i]) if stage_norm else nn.Identity(),
                    position(i, dim) if position else None,
                )
            )
            info = {"num_chs": out_dims[i], "reduction": self.stem.stride * 2**i, "module": f"stages.{i}"}
            self.feature_info.append(info)
        self.stages = nn.Sequential(*stages)
        self.out_norms = _out_norms(out_norms, out_dims, out_norm)
        self.finish((final_norm or norm[-1])(out_dims[-1]), drop_rate)

    def intermediate(self, x: Tensor, index: int, norm: bool, *context: Any) -> Tensor:
        """Return stage `index`'s output through its own norm if it has one; the final norm fits the last stage only."""
        if self.out_norms is not None:
            return self.out_norms[index](x)
        return self.norm(x) if norm and index + 1 == len(self.feature_info) else x

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.out_norms is not None:
            self.out_norms = nn.ModuleList(
                module if i in taken else nn.Identity() for i, module in enumerate(self.out_norms)
            )
        return taken

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return timm's patterns of parameter groups from stem to head, by stage if `coarse`, else by block."""
        blocks = [
            (r"^stages\.(\d+)\.(?:downsample|position)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
            (r"^(?:norm|out_norms)", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}
