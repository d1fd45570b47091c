"""ViG and ViG-H: isotropic models and pyramids of gated linear attention.

Liao et al., "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention", arXiv 2405.18425. Weights
and configurations of hustvl/ViG.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.layers import GluMlp, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import PatchDownsample, PatchStem, PositionTable, RMSNorm, build_mixer
from .backbone import build_backbone
from .isotropic import Isotropic
from .pyramid import Pyramid
from .vig_checkpoint import cfg, checkpoint_filter_fn


class Stem(nn.Module):
    """Two overlapping convolutions with a norm each, an activation between: [B, C, H, W] -> [B, h, w, dim].

    The first has stride `patch` / 2 and reaches one pixel further than that, the second is 3x3 of stride 2; both are
    zero-padded by one. Images too small for the first are zero-padded at the bottom and right.

    Args:
        act: builder of the activation.
        img_size: size of images that learned positions are made for, or None for no positions.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch: int,
        act: Callable[[], nn.Module],
        img_size: int | tuple[int, int] | None = None,
    ):
        super().__init__()
        stride = patch // 2
        self.stride = patch
        self.first = PatchStem(in_chans, dim // 2, stride, kernel=stride + 1, padding=1, ceil_mode=False)
        self.act = act()
        self.second = PatchDownsample(dim // 2, dim, kernel=3, padding=1, ceil_mode=False)
        self.position = nn.Identity() if img_size is None else PositionTable(dim, self.grid(img_size), "bicubic")

    def forward(self, x: Tensor) -> Tensor:
        return self.position(self.second(self.act(self.first(x))))

    def grid(self, img_size: int | tuple[int, int]) -> tuple[int, int]:
        """Return the map's size (h, w) for images of that size."""
        return tuple((max((size + 1) // (self.stride // 2), 1) + 1) // 2 for size in to_2tuple(img_size))


def _gated_mlp(dim: int, multiple: int) -> GluMlp:
    """Return an MLP gated by SiLU, of 8 / 3 `dim` hidden channels rounded up to a multiple, without bias."""
    hidden = -(-int(8 * dim / 3) // multiple) * multiple
    return GluMlp(dim, 2 * hidden, act_layer=nn.SiLU, bias=False, gate_last=False)


class ViG(Isotropic):
    """Isotropic body of gated linear attention, with learned positions made for images of `img_size`.

    Other sizes work: positions are resampled for them, at each call, or for good by `set_input_size`.

    Args:
        dim, depth, num_heads: channels, blocks and heads.
        patch_size: even stride of the map.
        mlp_multiple: what the hidden channels of the MLP are a multiple of.
        acts: whether the mixer has its two activations, as in ViG-T.
        kwargs: the rest of `Isotropic`'s arguments, e.g. `drop_path_rate`, `in_chans`.

    Raises:
        ValueError: `patch_size` is odd or less than 2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        depth: int = 12,
        patch_size: int = 16,
        mlp_multiple: int = 256,
        acts: bool = False,
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ):
        if patch_size < 2 or patch_size % 2:
            raise ValueError(f"patch_size={patch_size} must be even and at least 2")
        options = {"conv_act": acts, "out_act": acts, "halve_in_eval": True}
        super().__init__(
            dim,
            depth,
            stem=partial(Stem, patch=patch_size, act=nn.SiLU, img_size=img_size),
            mixer=lambda index, dim: build_mixer("gla", dim, num_heads, **options),
            mlp=partial(_gated_mlp, multiple=mlp_multiple),
            norm=partial(RMSNorm, eps=1e-6),
            **kwargs,
        )

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the positions for images of `img_size`."""
        self.stem.position.set_grid(self.stem.grid(img_size))


class ViGH(Pyramid):
    """Pyramid of gated linear attention.

    Args:
        embed_dim: channels of the first stage; each stage has twice the one before.
        depths, num_heads: blocks and heads of each stage.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `drop_path_rate`, `in_chans`, `out_norms`.

    Raises:
        ValueError: `num_heads` does not match `depths`.
    """

    def __init__(self, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], **kwargs: Any):
        if len(num_heads) != len(depths):
            raise ValueError(f"num_heads={tuple(num_heads)} must be one for each stage of depths={tuple(depths)}")
        super().__init__(
            dims=[embed_dim * 2**i for i in range(len(depths))],
            depths=depths,
            stem=partial(Stem, patch=4, act=nn.GELU),
            downsample=partial(PatchDownsample, kernel=3, padding=1, ceil_mode=False),
            mixer=lambda stage, index, dim: build_mixer("gla", dim, num_heads[stage]),
            mlp=lambda stage, dim: _gated_mlp(dim, 32),
            **kwargs,
        )


default_cfgs = generate_default_cfgs(
    {
        "vigla_nano.untrained": cfg(size=32, reduction=8, crop_pct=1.0),
        "vigla_tiny.hustvl_in1k": cfg(
            "vig_t_77p2acc.pth", "a1eb2901db2331df033d3d6f8f20fb6d0561287f4972d98fc293c746cc70bfbb", reduction=16
        ),
        "vigla_small.hustvl_in1k": cfg(
            "vig_s_81p7acc.pth", "ad1c62e85af5f527fbbb193077ab3192ed8f77c76631a91599e87fdae9dee0e6", reduction=16
        ),
        "vigla_base.hustvl_in1k": cfg(
            "vig_b_82p6acc.pth", "0a681ccacf5c012a6a432a39e9ad773fae053ac863696c42bb261e300af9f158", reduction=16
        ),
        "vigla_h_tiny.hustvl_in1k": cfg(
            "vig_h_t_82p8acc.pth", "287d1b6e742edf4b6dc6a36010ad09c27e52c5c140369ffc36230b4b335c5e68"
        ),
        "vigla_h_small.hustvl_in1k": cfg(
            "vig_h_s_83p8acc.pth", "0d52501e8d6097177ba47520cc15052d694b82ecb7b7ffffab59a11dc40bbb4a"
        ),
        "vigla_h_base.hustvl_in1k": cfg(
            "vig_h_b_84p2acc.pth", "49acb31474ba5cf616414739c9410721f8e7f77b5b20ac57b84e16f28682a263"
        ),
    }
)

published_top1 = {
    "vigla_tiny.hustvl_in1k": 77.2,
    "vigla_small.hustvl_in1k": 81.7,
    "vigla_base.hustvl_in1k": 82.6,
    "vigla_h_tiny.hustvl_in1k": 82.8,
    "vigla_h_small.hustvl_in1k": 83.8,
    "vigla_h_base.hustvl_in1k": 84.2,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""

_H_TINY = {"embed_dim": 96, "depths": (2, 2, 5, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
_H_SMALL = {**_H_TINY, "depths": (2, 2, 17, 2), "drop_path_rate": 0.3}
_H_BASE = {**_H_SMALL, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.6}


def _build(cls: type[ViG | ViGH], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(cls, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


@register_model
def vigla_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG of under a million parameters and patches of 8, for tests and the quickstart; not from the paper."""
    config = {"dim": 64, "num_heads": 4, "patch_size": 8, "mlp_multiple": 32, "img_size": 32}
    return _build(ViG, "vigla_nano", pretrained, kwargs, **config)


@register_model
def vigla_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-T."""
    return _build(ViG, "vigla_tiny", pretrained, kwargs, dim=192, num_heads=3, acts=True)


@register_model
def vigla_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-S."""
    return _build(ViG, "vigla_small", pretrained, kwargs, dim=384, num_heads=6, drop_path_rate=0.2)


@register_model
def vigla_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-B."""
    return _build(ViG, "vigla_base", pretrained, kwargs, dim=768, num_heads=12, drop_path_rate=0.5)


@register_model
def vigla_h_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-H-T."""
    return _build(ViGH, "vigla_h_tiny", pretrained, kwargs, **_H_TINY)


@register_model
def vigla_h_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-H-S."""
    return _build(ViGH, "vigla_h_small", pretrained, kwargs, **_H_SMALL)


@register_model
def vigla_h_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViG-H-B."""
    return _build(ViGH, "vigla_h_base", pretrained, kwargs, **_H_BASE)
