"""NaLaFormer: pyramids of norm-aware linear attention (NaLa), with softmax attention in the last two stages.

Meng et al., "NaLaFormer: Norm-Aware Linear Attention for Transformer Models", arXiv 2506.21137. Configurations of
ZacharyMeng/NaLaFormer; the weights announced there were not released.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .backbone import build_backbone
from .checkpoint import imagenet_cfg
from .gated_pyramid import GatedPyramid, checkpoint_filter_fn
from .ravlt import BASE, LARGE, NANO, SMALL, TINY

_MIXERS = ("nala", "nala", "rotary_softmax", "rotary_softmax")

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.convs.0",
    license="mit",
    origin_url="https://github.com/ZacharyMeng/NaLaFormer",
    paper_name="NaLaFormer: Norm-Aware Linear Attention for Transformer Models",
    paper_ids="arXiv:2506.21137",
)
_announced = partial(_cfg, notes=("weights were announced, but not released",))

default_cfgs = generate_default_cfgs(
    {
        "nalaformer_nano.untrained": _cfg(size=32, crop_pct=1.0),
        "nalaformer_xtiny.meng_in1k": _announced(),
        "nalaformer_tiny.meng_in1k": _announced(),
        "nalaformer_small.meng_in1k": _announced(),
        "nalaformer_base.meng_in1k": _announced(),
        "nalaformer_large.meng_in1k": _announced(),
    }
)

published_top1 = {
    "nalaformer_xtiny.meng_in1k": 79.1,
    "nalaformer_tiny.meng_in1k": 82.6,
    "nalaformer_small.meng_in1k": 84.3,
    "nalaformer_base.meng_in1k": 85.2,
    "nalaformer_large.meng_in1k": 85.7,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""

_XTINY = {"embed_dims": (32, 64, 128, 384), "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 12), "drop_path_rate": 0.1}


def _nalaformer(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    gate = {"gate": "silu", "normed": True}
    config = {"mixers": _MIXERS, "mixer_kwargs": gate, "mlp_positions": True, **config, **kwargs}
    return build_backbone(GatedPyramid, variant, pretrained, checkpoint_filter_fn, **config)


@register_model
def nalaformer_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NaLaFormer of under a million parameters, for tests and the quickstart; not from the paper."""
    # Untrained branches are normed, and larger than the stream they add to: at a scale of 1, rounding the weights to
    # bfloat16 alone moves the logits by 1.4 to 4.5 % (five seeds), at 0.1 by 0.8 to 1.3 %, less than RAVLT's.
    return _nalaformer("nalaformer_nano", pretrained, kwargs, layer_scale=0.1, **NANO)


@register_model
def nalaformer_xtiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NaLaFormer-XT."""
    return _nalaformer("nalaformer_xtiny", pretrained, kwargs, **_XTINY)


@register_model
def nalaformer_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NaLaFormer-T."""
    return _nalaformer("nalaformer_tiny", pretrained, kwargs, mlp_ratio=4.0, **TINY)


@register_model
def nalaformer_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NaLaFormer-S."""
    return _nalaformer("nalaformer_small", pretrained, kwargs, **SMALL)


@register_model
def nalaformer_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NaLaFormer-B."""
    return _nalaformer("nalaformer_base", pretrained, kwargs, mlp_ratio=4.0, **BASE)


@register_model
def nalaformer_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """NaLaFormer-L."""
    return _nalaformer("nalaformer_large", pretrained, kwargs, **LARGE)
