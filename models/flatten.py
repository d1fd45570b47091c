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
from .hosts import cswin, pvt, pvt_v2, swin
from .hosts.cswin import CSwin
from .hosts.pvt import PVT
from .hosts.pvt_v2 import PVTv2
from .hosts.swin import Swin

_cfg = partial(
    leaplab.cfg,
    "FLatten-Transformer",
    paper_name="FLatten Transformer: Vision Transformer using Focused Linear Attention",
    paper_ids="arXiv:2308.00442",
)


def _flatten(host: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    # Of the files that may hold averaged weights too, the repository evaluated the trained ones.
    return leaplab.build(host, variant, pretrained, kwargs, mixer="focused", averaged=False, **config)


default_cfgs = generate_default_cfgs(
    {
        "flatten_swin_nano.untrained": _cfg(size=32, crop_pct=1.0, notes=()),
        "flatten_pvt_tiny.leaplab_in1k": _cfg("3ab1d773f19d45648690"),
        "flatten_pvt_small.leaplab_in1k": _cfg(),
        "flatten_pvt_medium.leaplab_in1k": _cfg(),
        "flatten_pvt_large.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b0.leaplab_in1k": _cfg("5d1f01532b104da28e7b"),
        "flatten_pvt_v2_b1.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b2.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b3.leaplab_in1k": _cfg(),
        "flatten_pvt_v2_b4.leaplab_in1k": _cfg(),
        "flatten_swin_tiny.leaplab_in1k": _cfg("e1518e76703e4e57a7f2"),
        "flatten_swin_small.leaplab_in1k": _cfg("94188e52af354bf4a88b"),
        "flatten_swin_base.leaplab_in1k": _cfg("7a9e5186bad04e7fb3a9"),
        "flatten_swin_base_384.leaplab_in1k": _cfg("0d0330cf2e5249f1abb6", size=384, crop_pct=1.0),
        "flatten_cswin_tiny.leaplab_in1k": _cfg("48ba765ba8b0451d9d5a"),
        "flatten_cswin_small.leaplab_in1k": _cfg(),
        "flatten_cswin_base.leaplab_in1k": _cfg(),
        "flatten_cswin_base_384.leaplab_in1k": _cfg(size=384),
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
    "flatten_swin_tiny.leaplab_in1k": 82.1,
    "flatten_swin_small.leaplab_in1k": 83.5,
    "flatten_swin_base.leaplab_in1k": 83.8,
    "flatten_swin_base_384.leaplab_in1k": 85.0,
    "flatten_cswin_tiny.leaplab_in1k": 83.1,
    "flatten_cswin_small.leaplab_in1k": 83.8,
    "flatten_cswin_base.leaplab_in1k": 84.5,
    "flatten_cswin_base_384.leaplab_in1k": 85.5,
}
"""ImageNet-1k top-1 accuracy, in percent, as repository and paper state it."""

_SWIN_NANO = {
    "embed_dim": 20,
    "depths": (2, 2, 4, 1),
    "num_heads": (1, 2, 4, 8),
    "img_size": 32,
}
_LLSS = {"attn_type": "LLSS"}
# Not the depths of CSWin-S.
_CSWIN_SMALL = {**cswin.SMALL, "depths": (2, 4, 32, 2)}


@register_model
def flatten_swin_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-Swin of under a million parameters for small images, for tests and the quickstart; not from the paper."""
    return _flatten(Swin, "flatten_swin_nano", pretrained, kwargs, **_LLSS, **_SWIN_NANO)


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


@register_model
def flatten_swin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-Swin-T."""
    return _flatten(Swin, "flatten_swin_tiny", pretrained, kwargs, **_LLSS, **swin.TINY)


@register_model
def flatten_swin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-Swin-S."""
    return _flatten(Swin, "flatten_swin_small", pretrained, kwargs, **_LLSS, **swin.SMALL)


@register_model
def flatten_swin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-Swin-B."""
    return _flatten(Swin, "flatten_swin_base", pretrained, kwargs, **_LLSS, **swin.BASE)


@register_model
def flatten_swin_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-Swin-B for 384 x 384 pixels."""
    return _flatten(Swin, "flatten_swin_base_384", pretrained, kwargs, **_LLSS, **swin.BASE_384)


@register_model
def flatten_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-CSwin-T."""
    return _flatten(CSwin, "flatten_cswin_tiny", pretrained, kwargs, **_LLSS, **cswin.TINY)


@register_model
def flatten_cswin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-CSwin-S."""
    return _flatten(CSwin, "flatten_cswin_small", pretrained, kwargs, **_LLSS, **_CSWIN_SMALL)


@register_model
def flatten_cswin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-CSwin-B."""
    return _flatten(CSwin, "flatten_cswin_base", pretrained, kwargs, **_LLSS, **cswin.BASE)


@register_model
def flatten_cswin_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FLatten-CSwin-B for 384 x 384 pixels."""
    return _flatten(CSwin, "flatten_cswin_base_384", pretrained, kwargs, **_LLSS, **cswin.BASE_384)
