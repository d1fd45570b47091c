"""LITv2: pyramids whose first two stages only mix with convolutions in the MLP, and whose last two have HiLo attention.

Pan et al., "Fast Vision Transformers with HiLo Attention", arXiv 2205.13213. Weights and configurations of
ziplab/LITv2. A name that ends in `_alpha05` is LITv2-S with that share of low-frequency heads, 0.5; the share of all
others is 0.9, of which the tag `ziplab_alpha09_in1k` of `litv2_small` is the run released with these.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import ConvMLP, DeformableMerging, PatchStem, build_mixer
from .backbone import build_backbone
from .litv2_checkpoint import ALPHAS, MODELS, cfg, checkpoint_filter_fn
from .pyramid import Pyramid


class LITv2(Pyramid):
    """Pyramid of HiLo attention, convolutional MLPs and deformable token merging.

    Args:
        embed_dim: channels of the first stage; each stage has twice the one before.
        depths, num_heads: blocks, and attention heads, of each stage.
        windows: window of HiLo of each stage: 0 for blocks without attention, 1 for plain attention. No parameter
            depends on windows of 2 or more; some of the released detectors have (0, 0, 4, 1).
        alpha: share of the low-frequency heads.
        mlp_ratio: hidden channels of the MLP over channels.
        qkv_bias, scale: as `HiLo` takes them.
        proj_drop_rate: dropout in the MLPs.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `drop_path_rate`, `in_chans`, and `out_norms`: (1, 2, 3) for the
            official detection backbone, True for the segmentation one.

    Raises:
        ValueError: `num_heads` or `windows` does not match `depths`.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        windows: Sequence[int] = (0, 0, 2, 1),
        alpha: float = 0.9,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        scale: float | None = None,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        for name, values in (("num_heads", num_heads), ("windows", windows)):
            if len(values) != len(depths):
                raise ValueError(f"{name}={tuple(values)} must be one for each stage of depths={tuple(depths)}")

        def mixer(stage: int, index: int, dim: int) -> nn.Module | None:
            if not windows[stage]:
                return None
            options = {"window": windows[stage], "alpha": alpha, "qkv_bias": qkv_bias, "scale": scale}
            return build_mixer("hilo", dim, num_heads[stage], **options)

        super().__init__(
            dims=[embed_dim * 2**i for i in range(len(depths))],
            depths=depths,
            stem=PatchStem,
            downsample=DeformableMerging,
            mixer=mixer,
            mlp=lambda stage, dim: ConvMLP(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            **kwargs,
        )
        for block in (block for stage in self.stages for block in stage.blocks):
            # Kaiming's, for the 9 taps that a channel has.
            nn.init.normal_(block.mlp.dwconv.weight, std=(2 / 9) ** 0.5)
            nn.init.zeros_(block.mlp.dwconv.bias)


def _litv2(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(LITv2, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


default_cfgs = generate_default_cfgs(
    {
        "litv2_nano.untrained": cfg(size=32, crop_pct=1.0),
        "litv2_small.ziplab_in1k": cfg(MODELS + "litv2_s.pth"),
        "litv2_small.ziplab_alpha09_in1k": cfg(ALPHAS + "alpha_0.9.pth"),
        "litv2_medium.ziplab_in1k": cfg(MODELS + "litv2_m.pth"),
        "litv2_base.ziplab_in1k": cfg(MODELS + "litv2_b.pth"),
        # The official evaluation warps the image to a square.
        "litv2_base_384.ziplab_in1k": cfg(MODELS + "litv2_b_384.pth", size=384, crop_pct=1.0, crop_mode="squash"),
        "litv2_small_alpha00.ziplab_in1k": cfg(ALPHAS + "alpha_0.pth"),
        "litv2_small_alpha02.ziplab_in1k": cfg(ALPHAS + "alpha_0.2.pth"),
        "litv2_small_alpha04.ziplab_in1k": cfg(ALPHAS + "alpha_0.4.pth"),
        "litv2_small_alpha05.ziplab_in1k": cfg(ALPHAS + "alpha_0.5.pth"),
        "litv2_small_alpha07.ziplab_in1k": cfg(ALPHAS + "alpha_0.7.pth"),
        "litv2_small_alpha10.ziplab_in1k": cfg(ALPHAS + "alpha_1.pth"),
    }
)

published_top1 = {
    "litv2_small.ziplab_in1k": 82.0,
    "litv2_small.ziplab_alpha09_in1k": 82.03,
    "litv2_medium.ziplab_in1k": 83.3,
    "litv2_base.ziplab_in1k": 83.6,
    "litv2_base_384.ziplab_in1k": 84.7,
    "litv2_small_alpha00.ziplab_in1k": 81.16,
    "litv2_small_alpha02.ziplab_in1k": 81.89,
    "litv2_small_alpha04.ziplab_in1k": 81.81,
    "litv2_small_alpha05.ziplab_in1k": 81.88,
    "litv2_small_alpha07.ziplab_in1k": 81.94,
    "litv2_small_alpha10.ziplab_in1k": 81.89,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""

_SMALL = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
_MEDIUM = {**_SMALL, "depths": (2, 2, 18, 2), "drop_path_rate": 0.3}
_BASE = {**_MEDIUM, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}


@register_model
def litv2_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2 of under a million parameters, for tests and the quickstart; not from the paper."""
    config = {"embed_dim": 16, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8)}
    return _litv2("litv2_nano", pretrained, kwargs, **config)


@register_model
def litv2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-S."""
    return _litv2("litv2_small", pretrained, kwargs, **_SMALL)


@register_model
def litv2_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-M."""
    return _litv2("litv2_medium", pretrained, kwargs, **_MEDIUM)


@register_model
def litv2_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-B."""
    return _litv2("litv2_base", pretrained, kwargs, **_BASE)


@register_model
def litv2_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-B for 384 x 384 pixels."""
    return _litv2("litv2_base_384", pretrained, kwargs, **_BASE)


@register_model
def litv2_small_alpha00(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-S with high-frequency heads only."""
    return _litv2("litv2_small_alpha00", pretrained, kwargs, alpha=0.0, **_SMALL)


@register_model
def litv2_small_alpha02(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-S with 2 of 12 heads for low frequencies."""
    return _litv2("litv2_small_alpha02", pretrained, kwargs, alpha=0.2, **_SMALL)


@register_model
def litv2_small_alpha04(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-S with 4 of 12 heads for low frequencies."""
    return _litv2("litv2_small_alpha04", pretrained, kwargs, alpha=0.4, **_SMALL)


@register_model
def litv2_small_alpha05(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-S with 6 of 12 heads for low frequencies."""
    return _litv2("litv2_small_alpha05", pretrained, kwargs, alpha=0.5, **_SMALL)


@register_model
def litv2_small_alpha07(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-S with 8 of 12 heads for low frequencies."""
    return _litv2("litv2_small_alpha07", pretrained, kwargs, alpha=0.7, **_SMALL)


@register_model
def litv2_small_alpha10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LITv2-S with low-frequency heads only."""
    return _litv2("litv2_small_alpha10", pretrained, kwargs, alpha=1.0, **_SMALL)
