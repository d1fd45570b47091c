"""Bodies that carry any mixer, by name: the plain pyramid, and DeiT, PVT, PVTv2, Swin and CSwin.

`timm.create_model("pyramid_tiny", mixer="agent", mixer_kwargs={"agent_num": 16})`: every entry of `layers.MIXERS`, one
or one for each stage. In the published bodies "softmax", the default, is the attention they were published with:
spatially reduced in PVT, in shifted windows in Swin, in stripes in CSwin.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .backbone import Backbone, build_backbone
from .checkpoint import check_fit, imagenet_cfg, unwrap
from .hosts import cswin, pvt, pvt_v2, swin
from .hosts.cswin import CSwin
from .hosts.deit import DeiT
from .hosts.plain import PlainPyramid
from .hosts.pvt import PVT
from .hosts.pvt_v2 import PVTv2
from .hosts.swin import Swin

_cfg = partial(imagenet_cfg, license="apache-2.0", origin_url="")
# The pyramid's stem and downsampling are NAT's, and so is its mixer unless told.
_pyramid_cfg = partial(_cfg, first_conv="stem.conv1", paper_ids="arXiv:2204.07143")

default_cfgs = generate_default_cfgs(
    {
        "pyramid_nano.untrained": _pyramid_cfg(size=32, crop_pct=1.0),
        "pyramid_tiny.untrained": _pyramid_cfg(),
        "any_deit_tiny.untrained": _cfg(reduction=16, paper_ids="arXiv:2012.12877"),
        "any_pvt_tiny.untrained": _cfg(paper_ids="arXiv:2102.12122"),
        "any_pvt_v2_b0.untrained": _cfg(paper_ids="arXiv:2106.13797"),
        "any_swin_tiny.untrained": _cfg(paper_ids="arXiv:2103.14030"),
        "any_cswin_tiny.untrained": _cfg(paper_ids="arXiv:2107.00652"),
    }
)

_NANO = {"embed_dims": (32, 64, 96, 128), "depths": (1, 1, 2, 1), "num_heads": (2, 4, 6, 8), "mlp_ratio": 2}
_TINY = {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.1}


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a file of ours, as training saves it.

    Raises:
        ValueError: it does not fit the model.
    """
    state = unwrap(state_dict)
    check_fit(state, model)
    return state


def _build(host: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(host, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


@register_model
def pyramid_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Plain pyramid of under a million parameters for small images, with neighborhood attention unless told."""
    return _build(PlainPyramid, "pyramid_nano", pretrained, kwargs, mixer="na", img_size=32, **_NANO)


@register_model
def pyramid_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Plain pyramid of the size of other families' tiny models, with neighborhood attention unless told."""
    return _build(PlainPyramid, "pyramid_tiny", pretrained, kwargs, mixer="na", **_TINY)


@register_model
def any_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-T with a mixer of choice; without a class token where the mixer takes maps only."""
    return _build(DeiT, "any_deit_tiny", pretrained, kwargs, mixer="softmax", dim=192, num_heads=3)


@register_model
def any_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PVT-T with a mixer of choice."""
    return _build(PVT, "any_pvt_tiny", pretrained, kwargs, mixer="softmax", **pvt.TINY)


@register_model
def any_pvt_v2_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PVTv2-B0 with a mixer of choice."""
    return _build(PVTv2, "any_pvt_v2_b0", pretrained, kwargs, mixer="softmax", **pvt_v2.B0)


@register_model
def any_swin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T with a mixer of choice."""
    return _build(Swin, "any_swin_tiny", pretrained, kwargs, mixer="softmax", **swin.TINY)


@register_model
def any_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CSwin-T, in the depths that FLatten gave it, with a mixer of choice."""
    return _build(CSwin, "any_cswin_tiny", pretrained, kwargs, mixer="softmax", **cswin.TINY)
