"""FLatten: focused linear attention in the bodies of PVT, PVTv2, Swin and CSwin.

Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention", arXiv 2308.00442. Weights and
configurations of LeapLabTHU/FLatten-Transformer.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from . import leaplab
from .backbone import Backbone
from .hosts import pvt, pvt_v2
from .hosts.pvt import PVT
from .hosts.pvt_v2 import PVTv2

_cfg = partial(
    leaplab.cfg,
    "FLatten-Transformer",
    paper_name="FLatten Transformer: Vision Transformer using Focused Linear Attention",
    paper_ids="arXiv:2308.00442",
)


def _flatten(host: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    # Of the files that may hold averaged weights too, the repository evaluated the trained ones.
    return leaplab.build(host, variant, pretrained, kwargs, mixer="focused_linear", averaged=False, **config)


default_cfgs = generate_default_cfgs(
    {
        "flatten_pvt_tiny.leaplab_in1k": _cfg("3ab1d773f19d45648690"),
        "flatten_pvt_small.leaplab_in1k": _cfg(),
        "flatten_pvt_medium.leaplab_in1k": _cfg(),
        "flatten_pvt_large.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b0.leaplab_in1k": _cfg("5d1f01532b104da28e7b"),
        "flatten_pvt_v2_b1.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b2.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b3.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b4.leaplab_in1k": _cfg(),
    }
)

published_top1 = {
    "flatten_pvt_tiny.leaplab_in1k": 77.8,
    "flatten_pvt_small.leaplab_in1k": 81.7,
    "flatten_pvt_medium.leaplab_in1k": 83.0,
    "flatten_pvt_v2_b0.leaplab_in1k": 71.1,
    "flatten_pvt_v2_b1.leaplab_in1k": 79.5,
    "flatten_pvt_v2_b2.leaplab_in1k": 82.5,
    "flatten_pvt_v2_b3.leaplab_in1k": 83.7,
    "flatten_pvt_v2_b4.leaplab_in1k": 84.0,
}
"""ImageNet-1k top-1 accuracy, in percent, as repository and paper state it."""


@register_model
def flatten_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVT-T."""
    return _flatten(PVT, "flatten_pvt_tiny", pretrained, kwargs, **pvt.TINY)


@register_model
def flatten_pvt_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVT-S."""
    return _flatten(PVT, "flatten_pvt_small", pretrained, kwargs, **pvt.SMALL)


@register_model
def flatten_pvt_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVT-M."""
    return _flatten(PVT, "flatten_pvt_medium", pretrained, kwargs, **pvt.MEDIUM)


@register_model
def flatten_pvt_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVT-L."""
    return _flatten(PVT, "flatten_pvt_large", pretrained, kwargs, **pvt.LARGE)


@register_model
def flatten_pvt_v2_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVTv2-B0."""
    return _flatten(PVTv2, "flatten_pvt_v2_b0", pretrained, kwargs, **pvt_v2.B0)


@register_model
def flatten_pvt_v2_b1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVTv2-B1."""
    return _flatten(PVTv2, "flatten_pvt_v2_b1", pretrained, kwargs, **pvt_v2.B1)


@register_model
def flatten_pvt_v2_b2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVTv2-B2."""
    return _flatten(PVTv2, "flatten_pvt_v2_b2", pretrained, kwargs, **pvt_v2.B2)


@register_model
def flatten_pvt_v2_b3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVTv2-B3."""
    return _flatten(PVTv2, "flatten_pvt_v2_b3", pretrained, kwargs, **pvt_v2.B3)


@register_model
def flatten_pvt_v2_b4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-PVTv2-B4."""
    return _flatten(PVTv2, "flatten_pvt_v2_b4", pretrained, kwargs, **pvt_v2.B4)
