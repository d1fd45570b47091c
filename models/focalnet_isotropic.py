"""The isotropic models of the FocalNet paper: the width and depth of ViT, with focal modulation for attention.

Yang et al., "Focal Modulation Networks", arXiv 2203.11926. Weights and configurations of microsoft/FocalNet.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import Mlp, PatchStem, build_mixer
from .backbone import build_backbone
from .focalnet_checkpoint import AZURE, cfg, checkpoint_filter_fn
from .isotropic import Isotropic

PATCH = 16


class FocalNetIsotropic(Isotropic):
    """Isotropic body of focal modulation.

    Args:
        dim: channels.
        focal_level, focal_window, use_postln_in_modulation, normalize_modulator: as `FocalModulation` takes them.
        ceil_mode: zero-pad what does not fill a patch at the bottom and right, instead of dropping it.
        kwargs: the rest of `Isotropic`'s arguments.
    """

    def __init__(
        self,
        dim: int,
        focal_level: int = 3,
        focal_window: int = 3,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
        ceil_mode: bool = False,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        def mixer(index: int, dim: int) -> nn.Module:
            return build_mixer(
                "focal",
                dim,
                focal_level=focal_level,
                focal_window=focal_window,
                proj_drop=proj_drop_rate,
                use_postln_in_modulation=use_postln_in_modulation,
                normalize_modulator=normalize_modulator,
            )

        super().__init__(
            dim,
            stem=partial(PatchStem, patch=PATCH, ceil_mode=ceil_mode),
            mixer=mixer,
            mlp=lambda dim: Mlp(dim, 4 * dim, drop=proj_drop_rate),
            **kwargs,
        )


_cfg = partial(cfg, reduction=PATCH)

default_cfgs = generate_default_cfgs(
    {
        "focalnet_tiny_iso.ms_in1k": _cfg(AZURE + "focalnet_tiny_iso_16.pth"),
        "focalnet_small_iso.ms_in1k": _cfg(AZURE + "focalnet_small_iso_16.pth"),
        "focalnet_base_iso.ms_in1k": _cfg(AZURE + "focalnet_base_iso_16.pth"),
    }
)

published_top1 = {
    "focalnet_tiny_iso.ms_in1k": 74.1,
    "focalnet_small_iso.ms_in1k": 80.9,
    "focalnet_base_iso.ms_in1k": 82.4,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""


def _iso(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    config |= {"depth": 12, "drop_path_rate": 0.2, "ceil_mode": kwargs.get("features_only", False)}
    return build_backbone(FocalNetIsotropic, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


@register_model
def focalnet_tiny_iso(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Isotropic FocalNet, tiny."""
    return _iso("focalnet_tiny_iso", pretrained, kwargs, dim=192)


@register_model
def focalnet_small_iso(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Isotropic FocalNet, small."""
    return _iso("focalnet_small_iso", pretrained, kwargs, dim=384)


@register_model
def focalnet_base_iso(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Isotropic FocalNet, base; alone among them with post-norm and layer scale."""
    return _iso("focalnet_base_iso", pretrained, kwargs, dim=768, post_norm=True, layer_scale=1e-4)
