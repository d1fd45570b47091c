"""L2ViT: pyramids that alternate window attention and linear attention with local concentration.

Zheng, "The Linear Attention Resurrection in Vision Transformer", arXiv 2501.16182. Weights and configurations of
ChuanyangZheng/L2ViT.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import ConditionalPosition, ConvStem, LocalConcentration, Mlp, NormPatchDownsample, build_mixer
from .backbone import build_backbone
from .l2vit_checkpoint import RELEASE, cfg, checkpoint_filter_fn
from .pyramid import Pyramid


class L2ViT(Pyramid):
    """Pyramid whose even blocks attend inside windows, and whose odd ones attend linearly to everything.

    Every block begins with a convolutional position. After attention, even ones have another, odd ones local
    concentration.

    Args:
        embed_dim: channels of the first stage; each stage has twice the one before.
        depths, num_heads: blocks, and attention heads, of each stage.
        window: extent of the windows; no parameter depends on it, and the official detectors keep 7 at any size.
        mlp_ratio: hidden channels of the MLP over channels.
        proj_drop_rate: dropout after attention and in the MLPs.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `drop_path_rate`, `in_chans`, and `out_norms`: (1, 2, 3) for the
            official RetinaNets, True for the other detection and segmentation backbones.

    Raises:
        ValueError: `num_heads` does not match `depths`.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window: int = 7,
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        if len(num_heads) != len(depths):
            raise ValueError(f"num_heads={tuple(num_heads)} must be one for each stage of depths={tuple(depths)}")

        def mixer(stage: int, index: int, dim: int) -> nn.Module:
            if index % 2:
                return build_mixer("l2", dim, num_heads[stage], proj_drop=proj_drop_rate)
            options = {"window": window, "rel_pos_bias": False, "fit": False, "proj_drop": proj_drop_rate}
            return build_mixer("window", dim, num_heads[stage], **options)

        def extras(stage: int, index: int, dim: int, rate: float) -> dict[str, nn.Module]:
            between = LocalConcentration(dim, drop_path=rate) if index % 2 else ConditionalPosition(dim)
            return {"before": ConditionalPosition(dim), "between": between}

        def stem(in_chans: int, dim: int) -> ConvStem:
            return ConvStem(in_chans, (dim // 2, dim), (2, 2), multiple=4, last_act=False, norm=nn.LayerNorm)

        super().__init__(
            dims=[embed_dim * 2**i for i in range(len(depths))],
            depths=depths,
            stem=stem,
            downsample=NormPatchDownsample,
            mixer=mixer,
            mlp=lambda stage, dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            extras=extras,
            **kwargs,
        )


def _l2vit(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(L2ViT, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


_FINE_TUNED = RELEASE + "Base-22k21k-finetune-{}-checkpoint-best.pth"
_PRETRAINED = RELEASE + "Base-22k-pretrain-checkpoint-best.pth"

default_cfgs = generate_default_cfgs(
    {
        "l2vit_nano.untrained": cfg(size=32, crop_pct=1.0),
        "l2vit_tiny.zheng_in1k": cfg(RELEASE + "Tiny-checkpoint-best-ema.pth"),
        "l2vit_small.zheng_in1k": cfg(RELEASE + "Small-checkpoint-best-ema.pth"),
        "l2vit_base.zheng_in1k": cfg(RELEASE + "Base-checkpoint-best-ema.pth"),
        "l2vit_base.zheng_in22k_ft_in1k": cfg(_FINE_TUNED.format(224)),
        # The classes are in an order of the authors' own, which is not published.
        "l2vit_base.zheng_in22k": cfg(_PRETRAINED, num_classes=21841),
        # The official evaluation warps the image to a square.
        "l2vit_base_384.zheng_in22k_ft_in1k": cfg(_FINE_TUNED.format(384), size=384, crop_pct=1.0, crop_mode="squash"),
    }
)

published_top1 = {
    "l2vit_tiny.zheng_in1k": 83.1,
    "l2vit_small.zheng_in1k": 84.1,
    "l2vit_base.zheng_in1k": 84.4,
    "l2vit_base.zheng_in22k_ft_in1k": 86.0,
    "l2vit_base_384.zheng_in22k_ft_in1k": 87.0,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""

_TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
_SMALL = {**_TINY, "depths": (2, 2, 18, 2)}
_BASE = {**_SMALL, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.3}


@register_model
def l2vit_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """L2ViT of under a million parameters, for tests and the quickstart; not from the paper."""
    config = {"embed_dim": 16, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8)}
    return _l2vit("l2vit_nano", pretrained, kwargs, **config)


@register_model
def l2vit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """L2ViT-T."""
    return _l2vit("l2vit_tiny", pretrained, kwargs, **_TINY)


@register_model
def l2vit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """L2ViT-S."""
    return _l2vit("l2vit_small", pretrained, kwargs, **_SMALL)


@register_model
def l2vit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """L2ViT-B."""
    return _l2vit("l2vit_base", pretrained, kwargs, **_BASE)


@register_model
def l2vit_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """L2ViT-B for 384 x 384 pixels, with windows of 12."""
    return _l2vit("l2vit_base_384", pretrained, kwargs, window=12, **_BASE)
