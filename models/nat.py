"""NAT, DiNAT and DiNAT_s: pyramids of (dilated) neighborhood attention.

Hassani et al., "Neighborhood Attention Transformer", arXiv 2204.07143, and Hassani and Shi, "Dilated Neighborhood
Attention Transformer", arXiv 2209.15001. Weights and configurations of SHI-Labs/Neighborhood-Attention-Transformer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import ConvDownsample, ConvTokenizer, Mlp, PatchMerging, PatchStem
from .backbone import build_backbone
from .hosts.sized_pyramid import SizedPyramid
from .nat_checkpoint import NAT_CHECKPOINTS, cfg, checkpoint_filter_fn, dinat_cfg

Dilations = Sequence[Sequence[int]]


class NAT(SizedPyramid):
    """Pyramid whose mixers are neighborhood attention, or others in its place.

    Args:
        embed_dim: channels of the first stage; each stage has twice the one before.
        depths, num_heads: blocks, and attention heads, of each stage.
        window: odd extent of the neighborhood.
        dilations: dilation of each block, one sequence for each stage; default all 1.
        mlp_ratio: hidden channels of the MLP over channels.
        layer_scale: initial layer scale, or None.
        rel_pos_bias: whether attention has this bias.
        stem, downsample: builders, as `Pyramid` takes them.
        mixer: name of the mixer, one or one for each stage. `window`, `dilations` and `rel_pos_bias` are neighborhood
            attention's; the hyper-parameters of others are `mixer_kwargs`.
        kwargs: the rest of `SizedPyramid`'s arguments, e.g. `mixer_kwargs`, `out_norms`, `drop_path_rate`, `in_chans`.

    The official detection and segmentation backbones are `features_only=True, out_norms=True` with their own
    `dilations` (Mask2Former: also `window=11`); they load the downstream checkpoints, or a classifier to train from.

    Raises:
        ValueError: `dilations` or `num_heads` does not match `depths`, or no mixer has that name or hyper-parameter.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float,
        window: int = 7,
        dilations: Dilations | None = None,
        layer_scale: float | None = None,
        rel_pos_bias: bool = True,
        proj_drop_rate: float = 0.0,
        mixer: str | Sequence[str] = "na",
        stem: Callable[[int, int], nn.Module] = ConvTokenizer,
        downsample: Callable[[int, int], nn.Module] = ConvDownsample,
        **kwargs: Any,
    ):
        dilations = dilations or [[1] * depth for depth in depths]
        if [len(stage) for stage in dilations] != list(depths):
            raise ValueError(f"dilations={dilations} must name one for each block of stages of {tuple(depths)}")

        def specify(stage: int, index: int, name: str) -> tuple[str, dict[str, Any]]:
            neighborhood = {"window": window, "dilation": dilations[stage][index], "rel_pos_bias": rel_pos_bias}
            return name, neighborhood if name in ("na", "dina") else {}

        super().__init__(
            mixer,
            specify,
            depths,
            num_heads,
            dims=[embed_dim * 2**i for i in range(len(depths))],
            stem=stem,
            downsample=downsample,
            mlp=lambda stage, dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            proj_drop_rate=proj_drop_rate,
            layer_scale=layer_scale,
            **kwargs,
        )


def _nat(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(NAT, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


def _dinat(
    variant: str, pretrained: bool, kwargs: dict[str, Any], spread: Sequence[int] = (8, 4, 2), **config: Any
) -> nn.Module:
    """Build with dilations that alternate between 1 and the stage's in `spread`; the last stage is not dilated."""
    dilations = [
        [dilation if index % 2 else 1 for index in range(depth)]
        for dilation, depth in zip((*spread, 1), config["depths"], strict=True)
    ]
    return _nat(variant, pretrained, kwargs, dilations=dilations, **config)


def _dinat_s(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return _dinat(variant, pretrained, kwargs, mlp_ratio=4, stem=PatchStem, downsample=PatchMerging, **config)


_nat_cfg = partial(cfg, first_conv="stem.conv1")
_dinat_cfg = partial(dinat_cfg, first_conv="stem.conv1")
_at_384 = {"size": 384, "crop_pct": 1.0}
# The repository does not state how many classes its ImageNet-22k heads have; 21841 is the full set.
_in22k = {"num_classes": 21841}

default_cfgs = generate_default_cfgs(
    {
        "nat_nano.untrained": _nat_cfg(size=32, crop_pct=1.0),
        "nat_mini.shi_in1k": _nat_cfg(NAT_CHECKPOINTS + "nat_mini.pth"),
        "nat_tiny.shi_in1k": _nat_cfg(NAT_CHECKPOINTS + "nat_tiny.pth"),
        "nat_small.shi_in1k": _nat_cfg(NAT_CHECKPOINTS + "nat_small.pth"),
        "nat_base.shi_in1k": _nat_cfg(NAT_CHECKPOINTS + "nat_base.pth"),
        "dinat_mini.shi_in1k": _dinat_cfg("imagenet1k/dinat_mini_in1k_224.pth"),
        "dinat_tiny.shi_in1k": _dinat_cfg("imagenet1k/dinat_tiny_in1k_224.pth"),
        "dinat_small.shi_in1k": _dinat_cfg("imagenet1k/dinat_small_in1k_224.pth"),
        "dinat_base.shi_in1k": _dinat_cfg("imagenet1k/dinat_base_in1k_224.pth"),
        "dinat_large.shi_in22k_ft_in1k": _dinat_cfg("imagenet1k/dinat_large_in22k_in1k_224.pth"),
        "dinat_large.shi_in22k": _dinat_cfg("imagenet22k/dinat_large_in22k_224.pth", **_in22k),
        "dinat_large_384.shi_in22k_ft_in1k": _dinat_cfg("imagenet1k/dinat_large_in22k_in1k_384.pth", **_at_384),
        "dinat_large_384_11x11.shi_in22k_ft_in1k": _dinat_cfg(
            "imagenet1k/dinat_large_in22k_in1k_384_11x11.pth", **_at_384
        ),
        "dinat_large_384_11x11.shi_in22k": _dinat_cfg("imagenet22k/dinat_large_in22k_224_11x11interp.pth", **_in22k),
        "dinat_s_tiny.shi_in1k": dinat_cfg("imagenet1k/dinat_s_tiny_in1k_224.pth"),
        "dinat_s_small.shi_in1k": dinat_cfg("imagenet1k/dinat_s_small_in1k_224.pth"),
        "dinat_s_base.shi_in1k": dinat_cfg("imagenet1k/dinat_s_base_in1k_224.pth"),
        "dinat_s_large.shi_in22k_ft_in1k": dinat_cfg("imagenet1k/dinat_s_large_in1k_224.pth"),
        "dinat_s_large.shi_in22k": dinat_cfg("imagenet22k/dinat_s_large_in22k_224.pth", **_in22k),
        "dinat_s_large_384.shi_in22k_ft_in1k": dinat_cfg("imagenet1k/dinat_s_large_in1k_384.pth", **_at_384),
    }
)

published_top1 = {
    "nat_mini.shi_in1k": 81.8,
    "nat_tiny.shi_in1k": 83.2,
    "nat_small.shi_in1k": 83.7,
    "nat_base.shi_in1k": 84.3,
    "dinat_mini.shi_in1k": 81.8,
    "dinat_tiny.shi_in1k": 82.7,
    "dinat_small.shi_in1k": 83.8,
    "dinat_base.shi_in1k": 84.4,
    "dinat_large.shi_in22k_ft_in1k": 86.6,
    "dinat_large_384.shi_in22k_ft_in1k": 87.4,
    "dinat_large_384_11x11.shi_in22k_ft_in1k": 87.5,
    "dinat_s_tiny.shi_in1k": 81.8,
    "dinat_s_small.shi_in1k": 83.5,
    "dinat_s_base.shi_in1k": 83.8,
    "dinat_s_large.shi_in22k_ft_in1k": 86.5,
    "dinat_s_large_384.shi_in22k_ft_in1k": 87.4,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""

_MINI = {"embed_dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3, "drop_path_rate": 0.2}
_TINY = {**_MINI, "depths": (3, 4, 18, 5)}
_SMALL = {"embed_dim": 96, "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "mlp_ratio": 2, "drop_path_rate": 0.3}
_BASE = {**_SMALL, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "layer_scale": 1e-5, "drop_path_rate": 0.5}
_LARGE = {**_SMALL, "embed_dim": 192, "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.35}
_TINY_S = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
_SMALL_S = {**_TINY_S, "depths": (2, 2, 18, 2), "drop_path_rate": 0.3}
_BASE_S = {**_SMALL_S, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
_LARGE_S = {**_SMALL_S, "embed_dim": 192, "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.35}


@register_model
def nat_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NAT of under a million parameters, for tests and the quickstart; not from the paper."""
    config = {"embed_dim": 16, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8), "mlp_ratio": 2, "img_size": 32}
    return _nat("nat_nano", pretrained, kwargs, **config)


@register_model
def nat_mini(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NAT-Mini."""
    return _nat("nat_mini", pretrained, kwargs, **_MINI)


@register_model
def nat_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NAT-Tiny."""
    return _nat("nat_tiny", pretrained, kwargs, **_TINY)


@register_model
def nat_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NAT-Small."""
    return _nat("nat_small", pretrained, kwargs, layer_scale=1e-5, **_SMALL)


@register_model
def nat_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NAT-Base."""
    return _nat("nat_base", pretrained, kwargs, **_BASE)


@register_model
def dinat_mini(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT-Mini."""
    return _dinat("dinat_mini", pretrained, kwargs, **_MINI)


@register_model
def dinat_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT-Tiny."""
    return _dinat("dinat_tiny", pretrained, kwargs, **_TINY)


@register_model
def dinat_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT-Small; without layer scale, unlike NAT-Small."""
    return _dinat("dinat_small", pretrained, kwargs, **_SMALL)


@register_model
def dinat_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT-Base."""
    return _dinat("dinat_base", pretrained, kwargs, **_BASE)


@register_model
def dinat_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT-Large."""
    return _dinat("dinat_large", pretrained, kwargs, **_LARGE)


@register_model
def dinat_large_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT-Large with the dilations for 384 x 384 pixels."""
    return _dinat("dinat_large_384", pretrained, kwargs, spread=(13, 6, 3), **_LARGE)


@register_model
def dinat_large_384_11x11(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT-Large for 384 x 384 pixels with window 11 and the dilations of 224; the repository's name."""
    return _dinat("dinat_large_384_11x11", pretrained, kwargs, window=11, **_LARGE)


@register_model
def dinat_s_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT_s-Tiny."""
    return _dinat_s("dinat_s_tiny", pretrained, kwargs, **_TINY_S)


@register_model
def dinat_s_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT_s-Small."""
    return _dinat_s("dinat_s_small", pretrained, kwargs, **_SMALL_S)


@register_model
def dinat_s_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT_s-Base."""
    return _dinat_s("dinat_s_base", pretrained, kwargs, **_BASE_S)


@register_model
def dinat_s_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT_s-Large."""
    return _dinat_s("dinat_s_large", pretrained, kwargs, **_LARGE_S)


@register_model
def dinat_s_large_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DiNAT_s-Large with the dilations for 384 x 384 pixels."""
    return _dinat_s("dinat_s_large_384", pretrained, kwargs, spread=(13, 6, 3), **_LARGE_S)
