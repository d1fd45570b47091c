"""RAVLT: pyramids of rank-augmented linear attention (RALA), with softmax attention in the last two stages.

Fan et al., "Breaking the Low-Rank Dilemma of Linear Attention", arXiv 2411.07635. Weights and configurations of
qhfan/RALA.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .backbone import build_backbone
from .checkpoint import imagenet_cfg
from .gated_pyramid import GatedPyramid, checkpoint_filter_fn

_MIXERS = ("rala", "rala", "rotary_softmax", "rotary_softmax")
_WEIGHTS = "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/"

_cfg = partial(
    imagenet_cfg,
    first_conv="stem.convs.0",
    license="mit",
    origin_url="https://github.com/qhfan/RALA",
    paper_name="Breaking the Low-Rank Dilemma of Linear Attention",
    paper_ids="arXiv:2411.07635",
)

default_cfgs = generate_default_cfgs(
    {
        "ravlt_nano.untrained": _cfg(size=32, crop_pct=1.0),
        "ravlt_tiny.qhfan_in1k": _cfg(_WEIGHTS + "RAVLT_T.pth"),
        "ravlt_small.qhfan_in1k": _cfg(_WEIGHTS + "RAVLT_S.pth"),
        "ravlt_base.qhfan_in1k": _cfg(_WEIGHTS + "RAVLT_B.pth"),
        "ravlt_large.qhfan_in1k": _cfg(_WEIGHTS + "RAVLT_L.pth"),
    }
)

published_top1 = {"ravlt_small.qhfan_in1k": 84.4}
"""ImageNet-1k top-1 accuracy, in percent, as the paper's abstract states it; the others' could not be verified."""

TINY = {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8), "drop_path_rate": 0.1}
SMALL = {"embed_dims": (64, 128, 320, 512), "depths": (3, 5, 9, 3), "num_heads": (1, 2, 5, 8), "drop_path_rate": 0.15}
BASE = {
    "embed_dims": (96, 192, 384, 512),
    "depths": (4, 6, 12, 6),
    "num_heads": (1, 2, 6, 8),
    "layer_scale": (1.0, 1.0, 1e-6, 1e-6),
    "drop_path_rate": 0.4,
}
LARGE = {
    "embed_dims": (96, 192, 448, 640),
    "depths": (4, 7, 19, 8),
    "num_heads": (1, 2, 7, 10),
    "layer_scale": 1e-6,
    "drop_path_rate": 0.55,
}
NANO = {"embed_dims": (16, 32, 64, 96), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 6), "projection": 128}


def _ravlt(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    config = {"mixers": _MIXERS, **config, **kwargs}
    return build_backbone(GatedPyramid, variant, pretrained, checkpoint_filter_fn, **config)


@register_model
def ravlt_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RAVLT of under a million parameters, for tests and the quickstart; not from the paper."""
    return _ravlt("ravlt_nano", pretrained, kwargs, **NANO)


@register_model
def ravlt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RAVLT-T."""
    return _ravlt("ravlt_tiny", pretrained, kwargs, **TINY)


@register_model
def ravlt_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RAVLT-S."""
    return _ravlt("ravlt_small", pretrained, kwargs, **SMALL)


@register_model
def ravlt_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RAVLT-B."""
    return _ravlt("ravlt_base", pretrained, kwargs, **BASE)


@register_model
def ravlt_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RAVLT-L."""
    return _ravlt("ravlt_large", pretrained, kwargs, **LARGE)
