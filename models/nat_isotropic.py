"""The isotropic models of the DiNAT paper: NAT, DiNAT, and their baseline, a ViT with relative position bias.

Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2209.15001. Weights and configurations of
SHI-Labs/Neighborhood-Attention-Transformer.
"""

from functools import partial
from typing import Any

from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import Mlp, PatchStem, build_mixer
from .backbone import build_backbone
from .isotropic import Isotropic
from .nat_checkpoint import checkpoint_filter_fn, dinat_cfg

PATCH = 16


class NATIsotropic(Isotropic):
    """Isotropic body of neighborhood attention.

    Args:
        window, dilation: the neighborhood; every second block is dilated.
        kwargs: the rest of `Isotropic`'s arguments.
    """

    def __init__(self, dim: int, num_heads: int, window: int = 7, dilation: int = 1, **kwargs: Any):
        def mixer(index: int, dim: int) -> nn.Module:
            return build_mixer("na", dim, num_heads, window=window, dilation=dilation if index % 2 else 1)

        super().__init__(dim, stem=partial(PatchStem, patch=PATCH), mixer=mixer, mlp=_mlp, **kwargs)


class ViTRPB(Isotropic):
    """Isotropic body of global attention with a relative position bias, made for images of `img_size`.

    Other sizes work: the bias is resampled for them, at each call, or for good by `set_input_size`.
    """

    def __init__(self, dim: int, num_heads: int, img_size: int | tuple[int, int] = 224, **kwargs: Any):
        def mixer(index: int, dim: int) -> nn.Module:
            return build_mixer("global", dim, num_heads, grid=_grid(img_size))

        super().__init__(dim, stem=partial(PatchStem, patch=PATCH), mixer=mixer, mlp=_mlp, **kwargs)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the position biases for images of `img_size`."""
        for block in self.blocks:
            block.mixer.set_grid(_grid(img_size))


def _mlp(dim: int) -> nn.Module:
    return Mlp(dim, 4 * dim)


def _grid(img_size: int | tuple[int, int]) -> tuple[int, int]:
    return tuple(-(-size // PATCH) for size in to_2tuple(img_size))


_SMALL = {"dim": 384, "depth": 12, "num_heads": 12, "drop_path_rate": 0.1}
_BASE = {"dim": 768, "depth": 12, "num_heads": 24, "drop_path_rate": 0.4}
_cfg = partial(dinat_cfg, reduction=PATCH)

default_cfgs = generate_default_cfgs(
    {
        "nat_isotropic_small.shi_in1k": _cfg("isotropic/nat_isotropic_small_in1k_224.pth"),
        "nat_isotropic_base.shi_in1k": _cfg("isotropic/nat_isotropic_base_in1k_224.pth"),
        "dinat_isotropic_small.shi_in1k": _cfg("isotropic/dinat_isotropic_small_in1k_224.pth"),
        "dinat_isotropic_base.shi_in1k": _cfg("isotropic/dinat_isotropic_base_in1k_224.pth"),
        "vit_rpb_small.shi_in1k": _cfg("isotropic/vitrpb_small_in1k_224.pth"),
        "vit_rpb_base.shi_in1k": _cfg("isotropic/vitrpb_base_in1k_224.pth"),
    }
)

published_top1 = {
    "nat_isotropic_small.shi_in1k": 80.0,
    "nat_isotropic_base.shi_in1k": 81.6,
    "dinat_isotropic_small.shi_in1k": 80.8,
    "dinat_isotropic_base.shi_in1k": 82.1,
    "vit_rpb_small.shi_in1k": 81.2,
    "vit_rpb_base.shi_in1k": 82.5,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""


def _build(cls: type[Isotropic], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(cls, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


@register_model
def nat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Isotropic NAT, small."""
    return _build(NATIsotropic, "nat_isotropic_small", pretrained, kwargs, **_SMALL)


@register_model
def nat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Isotropic NAT, base."""
    return _build(NATIsotropic, "nat_isotropic_base", pretrained, kwargs, **_BASE)


@register_model
def dinat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Isotropic DiNAT, small."""
    return _build(NATIsotropic, "dinat_isotropic_small", pretrained, kwargs, dilation=2, **_SMALL)


@register_model
def dinat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Isotropic DiNAT, base."""
    return _build(NATIsotropic, "dinat_isotropic_base", pretrained, kwargs, dilation=2, **_BASE)


@register_model
def vit_rpb_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT with relative position bias, small."""
    return _build(ViTRPB, "vit_rpb_small", pretrained, kwargs, **_SMALL)


@register_model
def vit_rpb_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT with relative position bias, base."""
    return _build(ViTRPB, "vit_rpb_base", pretrained, kwargs, **_BASE)
