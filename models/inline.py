"""InLine: injective linear attention with a predicted local residual, in the bodies of DeiT, PVT, Swin and CSwin.

Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv 2412.06590. Weights and
configurations of LeapLabTHU/InLine.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from . import leaplab
from .backbone import Backbone
from .hosts import cswin, pvt, swin
from .hosts.cswin import CSwin
from .hosts.deit import DeiT
from .hosts.pvt import PVT
from .hosts.swin import Swin

_cfg = partial(
    leaplab.cfg,
    "InLine",
    paper_name="Bridging the Divide: Reconsidering Softmax and Linear Attention",
    paper_ids="arXiv:2412.06590",
)


def _inline(host: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return leaplab.build(host, variant, pretrained, kwargs, mixer="inline", **config)


default_cfgs = generate_default_cfgs(
    {
        "inline_pvt_nano.untrained": _cfg(size=32, crop_pct=1.0, notes=()),
        "inline_deit_tiny.leaplab_in1k": _cfg("1d6b8191ad6d4114b291", reduction=16),
        "inline_deit_small.leaplab_in1k": _cfg("2f3898b07e9247f3beb3", size=288, reduction=16),
        "inline_deit_base.leaplab_in1k": _cfg("10bdd726d4b0435eb34e", size=448, reduction=16),
        "inline_pvt_tiny.leaplab_in1k": _cfg("90ac52b1555b401eb5e6"),
        "inline_pvt_small.leaplab_in1k": _cfg("1ab953b2479d433080a3"),
        "inline_pvt_medium.leaplab_in1k": _cfg("a72aec31e6084bc0a280"),
        "inline_pvt_large.leaplab_in1k": _cfg("efd91318ba964f01b288"),
        "inline_swin_tiny.leaplab_in1k": _cfg("32810869fcc34410966b"),
        "inline_swin_small.leaplab_in1k": _cfg("e9657fd247c04c7cb1a1"),
        "inline_swin_base.leaplab_in1k": _cfg("bf23564bb64c420aafe1"),
        "inline_swin_base_384.leaplab_in1k": _cfg(size=384, crop_pct=1.0),
        "inline_cswin_tiny.leaplab_in1k": _cfg("49fa2ecc543647c4b970"),
        "inline_cswin_small.leaplab_in1k": _cfg("59f4e65f776f4052b93c"),
        "inline_cswin_base.leaplab_in1k": _cfg("91e17121df284ae38521"),
        "inline_cswin_base_384.leaplab_in1k": _cfg(size=384),
    }
)

published_top1 = {
    "inline_deit_tiny.leaplab_in1k": 74.5,
    "inline_deit_small.leaplab_in1k": 80.2,
    "inline_deit_base.leaplab_in1k": 82.3,
    "inline_pvt_tiny.leaplab_in1k": 78.2,
    "inline_pvt_small.leaplab_in1k": 82.0,
    "inline_pvt_medium.leaplab_in1k": 83.2,
    "inline_pvt_large.leaplab_in1k": 83.6,
    "inline_swin_tiny.leaplab_in1k": 82.4,
    "inline_swin_small.leaplab_in1k": 83.6,
    "inline_swin_base.leaplab_in1k": 84.1,
    "inline_cswin_tiny.leaplab_in1k": 83.2,
    "inline_cswin_small.leaplab_in1k": 83.8,
    "inline_cswin_base.leaplab_in1k": 84.5,
    "inline_cswin_base_384.leaplab_in1k": 85.7,
}
"""ImageNet-1k top-1 accuracy, in percent, as repository and paper state it."""

_PVT_NANO = {
    "embed_dims": (16, 32, 64, 128),
    "num_heads": (2, 4, 8, 16),
    "depths": (2, 2, 4, 2),
    "mlp_ratios": (2, 2, 2, 2),
    "img_size": 32,
}
_DEIT_TINY = {"dim": 192, "num_heads": 6, "drop_path_rate": 0.1}
_DEIT_SMALL = {"dim": 320, "num_heads": 10, "img_size": 288, "drop_path_rate": 0.1}
_DEIT_BASE = {"dim": 384, "num_heads": 12, "img_size": 448, "drop_path_rate": 0.1}
_PVT = {"num_heads": (2, 4, 10, 16)}


@register_model
def inline_pvt_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-PVT of under a million parameters for small images, for tests and the quickstart; not from the paper."""
    return _inline(PVT, "inline_pvt_nano", pretrained, kwargs, **_PVT_NANO)


@register_model
def inline_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-DeiT-T."""
    return _inline(DeiT, "inline_deit_tiny", pretrained, kwargs, **_DEIT_TINY)


@register_model
def inline_deit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-DeiT-S, for 288 x 288 pixels and narrower than DeiT-S."""
    return _inline(DeiT, "inline_deit_small", pretrained, kwargs, **_DEIT_SMALL)


@register_model
def inline_deit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-DeiT-B, for 448 x 448 pixels and narrower than DeiT-B."""
    return _inline(DeiT, "inline_deit_base", pretrained, kwargs, **_DEIT_BASE)


@register_model
def inline_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-PVT-T."""
    return _inline(PVT, "inline_pvt_tiny", pretrained, kwargs, **_PVT, **pvt.TINY)


@register_model
def inline_pvt_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-PVT-S."""
    return _inline(PVT, "inline_pvt_small", pretrained, kwargs, **_PVT, **pvt.SMALL)


@register_model
def inline_pvt_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-PVT-M."""
    return _inline(PVT, "inline_pvt_medium", pretrained, kwargs, **_PVT, **pvt.MEDIUM)


@register_model
def inline_pvt_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-PVT-L."""
    return _inline(PVT, "inline_pvt_large", pretrained, kwargs, **_PVT, **pvt.LARGE)


@register_model
def inline_swin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-Swin-T."""
    return _inline(Swin, "inline_swin_tiny", pretrained, kwargs, attn_type="IIIS", **swin.TINY)


@register_model
def inline_swin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-Swin-S."""
    return _inline(Swin, "inline_swin_small", pretrained, kwargs, attn_type="IISS", **swin.SMALL)


@register_model
def inline_swin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-Swin-B."""
    return _inline(Swin, "inline_swin_base", pretrained, kwargs, attn_type="IIMS2", **swin.BASE)


@register_model
def inline_swin_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-Swin-B for 384 x 384 pixels."""
    return _inline(Swin, "inline_swin_base_384", pretrained, kwargs, attn_type="IIMS2", **swin.BASE_384)


@register_model
def inline_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-CSwin-T."""
    return _inline(CSwin, "inline_cswin_tiny", pretrained, kwargs, attn_type="IISS", **cswin.TINY)


@register_model
def inline_cswin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-CSwin-S."""
    return _inline(CSwin, "inline_cswin_small", pretrained, kwargs, attn_type="IISS", **cswin.SMALL)


@register_model
def inline_cswin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-CSwin-B."""
    return _inline(CSwin, "inline_cswin_base", pretrained, kwargs, attn_type="IISS", **cswin.BASE)


@register_model
def inline_cswin_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InLine-CSwin-B for 384 x 384 pixels."""
    return _inline(CSwin, "inline_cswin_base_384", pretrained, kwargs, attn_type="IISS", **cswin.BASE_384)
