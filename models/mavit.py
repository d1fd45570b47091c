"""MAViT: pyramids of magnitude-aware linear attention (MALA), with softmax attention in the last two stages.

Fan et al., "Rectifying Magnitude Neglect in Linear Attention", arXiv 2507.00698. Weights and configurations of
qhfan/MALA; but for the mixer and a wider projection before the head, the models are RAVLT's.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .backbone import build_backbone
from .checkpoint import imagenet_cfg
from .gated_pyramid import GatedPyramid, checkpoint_filter_fn
from .ravlt import BASE, LARGE, NANO, SMALL, TINY

_MIXERS = ("mala", "mala", "rotary_softmax", "rotary_softmax")

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.convs.0",
    license="none stated",
    origin_url="https://github.com/qhfan/MALA",
    paper_name="Rectifying Magnitude Neglect in Linear Attention",
    paper_ids="arXiv:2507.00698",
)
# Which files the folder holds is not said anywhere that could be read.
_released = partial(
    _cfg,
    notes=("fetch the file of this size from https://huggingface.co/aldjalkdf/MAViT/tree/main",),
)

default_cfgs = generate_default_cfgs(
    {
        "mavit_nano.untrained": _cfg(size=32, crop_pct=1.0),
        "mavit_tiny.qhfan_in1k": _released(),
        "mavit_small.qhfan_in1k": _released(),
        "mavit_base.qhfan_in1k": _released(),
        "mavit_large.qhfan_in1k": _released(),
    }
)

published_top1: dict[str, float] = {}
"""ImageNet-1k top-1 accuracy, in percent: the paper's figures could not be verified."""


def _mavit(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    config = {"mixers": _MIXERS, "projection": 2048, **config, **kwargs}
    return build_backbone(GatedPyramid, variant, pretrained, checkpoint_filter_fn, **config)


@register_model
def mavit_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MAViT of under a million parameters, for tests and the quickstart; not from the paper."""
    return _mavit("mavit_nano", pretrained, kwargs, **NANO)


@register_model
def mavit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MAViT-T."""
    return _mavit("mavit_tiny", pretrained, kwargs, **TINY)


@register_model
def mavit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MAViT-S."""
    return _mavit("mavit_small", pretrained, kwargs, **SMALL)


@register_model
def mavit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MAViT-B."""
    return _mavit("mavit_base", pretrained, kwargs, **BASE)


@register_model
def mavit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MAViT-L."""
    return _mavit("mavit_large", pretrained, kwargs, projection=2560, **LARGE)
