"""FocalNet: pyramids of focal modulation.

Yang et al., "Focal Modulation Networks", arXiv 2203.11926. Weights and configurations of microsoft/FocalNet. The names
end in `_fused` because timm has models of the plain names; the weights are the same.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import to_ntuple
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import Mlp, PatchDownsample, PatchStem, build_mixer
from .backbone import build_backbone
from .focalnet_checkpoint import AZURE, GITHUB, cfg, checkpoint_filter_fn
from .pyramid import Pyramid


class FocalNet(Pyramid):
    """Pyramid whose mixers are focal modulation.

    A classifier's convolutions drop what does not fill a patch, as the official classifiers do. For `features_only` the
    registered models set `ceil_mode`, as the official detection and segmentation backbones do.

    Args:
        embed_dim: channels of the first stage; each stage has twice the one before.
        depths: blocks of each stage.
        focal_levels, focal_windows: levels, and kernel of the first level, of each stage or of all.
        focal_factor: number by which the kernels grow from level to level.
        mlp_ratio: hidden channels of the MLP over channels.
        layer_scale: initial layer scale, or None; the large models have 1e-4.
        use_conv_embed: overlapping convolutions between the stages and as stem.
        stem_padding: zeros around the image for an overlapping stem; the official detection backbone has 3.
        use_postln_in_modulation, normalize_modulator: as `FocalModulation` takes them.
        ceil_mode: zero-pad what does not fill a patch at the bottom and right, instead of dropping it.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `post_norm`, `out_norms`, `drop_path_rate`, `in_chans`.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        focal_levels: int | Sequence[int] = 2,
        focal_windows: int | Sequence[int] = 3,
        focal_factor: int = 2,
        mlp_ratio: float = 4.0,
        use_conv_embed: bool = False,
        stem_padding: int = 2,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
        ceil_mode: bool = False,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        levels, windows = (to_ntuple(len(depths))(value) for value in (focal_levels, focal_windows))
        if not len(levels) == len(windows) == len(depths):
            raise ValueError(
                f"focal_levels={focal_levels} and focal_windows={focal_windows} must be one number, or one for each of "
                f"the {len(depths)} stages"
            )

        def mixer(stage: int, index: int, dim: int) -> nn.Module:
            return build_mixer(
                "focal",
                dim,
                focal_window=windows[stage],
                focal_level=levels[stage],
                focal_factor=focal_factor,
                proj_drop=proj_drop_rate,
                use_postln_in_modulation=use_postln_in_modulation,
                normalize_modulator=normalize_modulator,
            )

        overlap = ({"kernel": 7, "padding": stem_padding}, {"kernel": 3, "padding": 1}) if use_conv_embed else ({}, {})
        super().__init__(
            dims=[embed_dim * 2**i for i in range(len(depths))],
            depths=depths,
            stem=partial(PatchStem, ceil_mode=ceil_mode, **overlap[0]),
            downsample=partial(PatchDownsample, ceil_mode=ceil_mode, **overlap[1]),
            mixer=mixer,
            mlp=lambda stage, dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            **kwargs,
        )


def _focalnet(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    config["ceil_mode"] = kwargs.get("features_only", False)
    return build_backbone(FocalNet, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


def _in1k(name: str) -> dict[str, Any]:
    return cfg(f"{GITHUB}focalnet_{name}.pth", hf_hub_id=f"timm/focalnet_{name}.ms_in1k")


def _in22k(name: str, url: str, **kwargs: Any) -> dict[str, Any]:
    """The labels are in an order of their own: the first 1000 are ImageNet-1k's, of which 850 was never trained."""
    return cfg(url, hf_hub_id=f"timm/focalnet_{name}.ms_in22k", num_classes=21842, **kwargs)


_at_384 = {"size": 384, "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "focalnet_nano.untrained": cfg("", size=32, crop_pct=1.0),
        "focalnet_tiny_srf_fused.ms_in1k": _in1k("tiny_srf"),
        "focalnet_tiny_lrf_fused.ms_in1k": _in1k("tiny_lrf"),
        "focalnet_small_srf_fused.ms_in1k": _in1k("small_srf"),
        "focalnet_small_lrf_fused.ms_in1k": _in1k("small_lrf"),
        "focalnet_base_srf_fused.ms_in1k": _in1k("base_srf"),
        "focalnet_base_lrf_fused.ms_in1k": _in1k("base_lrf"),
        "focalnet_large_fl3_fused.ms_in22k": _in22k("large_fl3", f"{GITHUB}focalnet_large_lrf_384.pth", **_at_384),
        "focalnet_large_fl4_fused.ms_in22k": _in22k("large_fl4", f"{GITHUB}focalnet_large_lrf_384_fl4.pth", **_at_384),
        "focalnet_xlarge_fl3_fused.ms_in22k": _in22k("xlarge_fl3", f"{GITHUB}focalnet_xlarge_lrf_384.pth", **_at_384),
        "focalnet_xlarge_fl4_fused.ms_in22k": _in22k(
            "xlarge_fl4", f"{GITHUB}focalnet_xlarge_lrf_384_fl4.pth", **_at_384
        ),
        "focalnet_huge_fl3_fused.ms_in22k": _in22k("huge_fl3", f"{AZURE}focalnet_huge_lrf_224.pth"),
        "focalnet_huge_fl4_fused.ms_in22k": cfg(f"{AZURE}focalnet_huge_lrf_224_fl4.pth", num_classes=21842),
        # timm's copy has no classifier, and so neither has the model of this tag.
        "focalnet_huge_fl4_fused.timm_in22k": cfg("", hf_hub_id="timm/focalnet_huge_fl4.ms_in22k", num_classes=0),
    }
)

published_top1 = {
    "focalnet_tiny_srf_fused.ms_in1k": 82.1,
    "focalnet_tiny_lrf_fused.ms_in1k": 82.3,
    "focalnet_small_srf_fused.ms_in1k": 83.4,
    "focalnet_small_lrf_fused.ms_in1k": 83.5,
    "focalnet_base_srf_fused.ms_in1k": 83.7,
    "focalnet_base_lrf_fused.ms_in1k": 83.9,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it; the ImageNet-22k weights have none."""

_TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "drop_path_rate": 0.2}
_SMALL = {"embed_dim": 96, "depths": (2, 2, 18, 2), "drop_path_rate": 0.3}
_BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2), "drop_path_rate": 0.5}
_LARGE = {**_BASE, "embed_dim": 192, "use_conv_embed": True, "post_norm": True, "layer_scale": 1e-4}
_XLARGE = {**_LARGE, "embed_dim": 256}
_HUGE = {**_LARGE, "embed_dim": 352, "use_postln_in_modulation": True}


@register_model
def focalnet_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet of under a million parameters, for tests and the quickstart; not from the paper."""
    return _focalnet("focalnet_nano", pretrained, kwargs, embed_dim=16, depths=(2, 2, 4, 2))


@register_model
def focalnet_tiny_srf_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-T with a small receptive field."""
    return _focalnet("focalnet_tiny_srf_fused", pretrained, kwargs, **_TINY)


@register_model
def focalnet_tiny_lrf_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-T with a large receptive field."""
    return _focalnet("focalnet_tiny_lrf_fused", pretrained, kwargs, focal_levels=3, **_TINY)


@register_model
def focalnet_small_srf_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-S with a small receptive field."""
    return _focalnet("focalnet_small_srf_fused", pretrained, kwargs, **_SMALL)


@register_model
def focalnet_small_lrf_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-S with a large receptive field."""
    return _focalnet("focalnet_small_lrf_fused", pretrained, kwargs, focal_levels=3, **_SMALL)


@register_model
def focalnet_base_srf_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-B with a small receptive field."""
    return _focalnet("focalnet_base_srf_fused", pretrained, kwargs, **_BASE)


@register_model
def focalnet_base_lrf_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-B with a large receptive field."""
    return _focalnet("focalnet_base_lrf_fused", pretrained, kwargs, focal_levels=3, **_BASE)


@register_model
def focalnet_large_fl3_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-L with three levels."""
    return _focalnet("focalnet_large_fl3_fused", pretrained, kwargs, focal_levels=3, focal_windows=5, **_LARGE)


@register_model
def focalnet_large_fl4_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-L with four levels and a normalised modulator, which timm's model of these weights leaves off."""
    return _focalnet("focalnet_large_fl4_fused", pretrained, kwargs, focal_levels=4, normalize_modulator=True, **_LARGE)


@register_model
def focalnet_xlarge_fl3_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-XL with three levels."""
    return _focalnet("focalnet_xlarge_fl3_fused", pretrained, kwargs, focal_levels=3, focal_windows=5, **_XLARGE)


@register_model
def focalnet_xlarge_fl4_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-XL with four levels, as its classification configuration and timm have it.

    FocalNet-DINO builds the same weights with `normalize_modulator=True`; which one they were trained with is not said.
    """
    return _focalnet("focalnet_xlarge_fl4_fused", pretrained, kwargs, focal_levels=4, **_XLARGE)


@register_model
def focalnet_huge_fl3_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-H with three levels."""
    return _focalnet("focalnet_huge_fl3_fused", pretrained, kwargs, focal_levels=3, **_HUGE)


@register_model
def focalnet_huge_fl4_fused(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FocalNet-H with four levels."""
    return _focalnet("focalnet_huge_fl4_fused", pretrained, kwargs, focal_levels=4, **_HUGE)
