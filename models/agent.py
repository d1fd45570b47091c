"""Agent attention in the bodies of DeiT, PVT, Swin and CSwin.

Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", arXiv 2312.08874. Weights and
configurations of LeapLabTHU/Agent-Attention.

All models take `agent_num`, the number of agents, and `agent_grids`, their rows and columns; pyramids one of each for
every stage. Detection and segmentation backbones have more agents than classifiers, with the same weights: the official
PVTs are `features_only=True, agent_grids=((12, 12), (16, 16), (28, 28), (28, 28))`, the Swins
`features_only=True, out_norms=True, agent_grids=((9, 9), (12, 12), (14, 14), (7, 7))`.
"""

from collections.abc import Sequence
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
    "Agent-Attention",
    paper_name="Agent Attention: On the Integration of Softmax and Linear Attention",
    paper_ids="arXiv:2312.08874",
)


def _agent(
    host: type[Backbone],
    variant: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    agent_num: int | Sequence[int] = 49,
    local: bool = True,
    **config: Any,
) -> nn.Module:
    """Build on a host with `agent_num` agents, or what the caller of timm says, and `local` convolutions of values.

    Raises:
        ValueError: there are grids of more or fewer stages than numbers.
    """
    agent_num, grids = kwargs.pop("agent_num", agent_num), kwargs.pop("agent_grids", None)
    if isinstance(agent_num, int):
        options = {"agent_num": agent_num, "agent_grid": grids, "local": local}
    else:
        grids = grids or [None] * len(agent_num)
        if len(grids) != len(agent_num):
            raise ValueError(f"agent_grids={grids} must be one pair for each stage of agent_num={tuple(agent_num)}")
        options = [
            {"agent_num": number, "agent_grid": grid, "local": local}
            for number, grid in zip(agent_num, grids, strict=True)
        ]
    return leaplab.build(host, variant, pretrained, kwargs, mixer="agent", mixer_kwargs=options, **config)


default_cfgs = generate_default_cfgs(
    {
        "agent_deit_nano.untrained": _cfg(size=32, reduction=4, crop_pct=1.0, notes=()),
        "agent_deit_tiny.leaplab_in1k": _cfg("57e0904221824ee7b7af", reduction=16),
        "agent_deit_small.leaplab_in1k": _cfg("fdd43304372541db8ea7", reduction=16),
        "agent_deit_small_448.leaplab_in1k": _cfg("a228f86241c445f1969b", size=448, reduction=16),
        "agent_deit_base.leaplab_in1k": _cfg("5115f15fdd7e4ab58fbc", reduction=16),
        "agent_pvt_tiny.leaplab_in1k": _cfg("13fdf0e0a7c5498c934f"),
        "agent_pvt_small.leaplab_in1k": _cfg("36b8be9a8863456685a3"),
        "agent_pvt_medium.leaplab_in1k": _cfg("4d00ecacf18b45f9b88c"),
        "agent_pvt_medium_256.leaplab_in1k": _cfg("654df734121643b19c52", size=256),
        "agent_pvt_large.leaplab_in1k": _cfg("040cfe0cfbbe4762ad09"),
        "agent_swin_tiny.leaplab_in1k": _cfg("a2ddc1190c224f768a41"),
        "agent_swin_small.leaplab_in1k": _cfg("f607172c9fea4d6e99bb"),
        "agent_swin_small_288.leaplab_in1k": _cfg("09760394e93b4046a25e", size=288, crop_pct=1.0),
        "agent_swin_base.leaplab_in1k": _cfg("4fcd2d0114bb490483c3"),
        "agent_swin_base_384.leaplab_in1k": _cfg("bb84ee9058954706a557", size=384, crop_pct=1.0),
        "agent_cswin_tiny.leaplab_in1k": _cfg("8c562a74441e46d5902b"),
        "agent_cswin_small.leaplab_in1k": _cfg("30eb8af675bc4b7a8747"),
        "agent_cswin_base.leaplab_in1k": _cfg("c8035b0839b2410c8c9f"),
        "agent_cswin_base_384.leaplab_in1k": _cfg("1239be0df44b47719432", size=384),
    }
)

published_top1 = {
    "agent_deit_tiny.leaplab_in1k": 74.9,
    "agent_deit_small.leaplab_in1k": 80.5,
    "agent_deit_small_448.leaplab_in1k": 83.1,
    "agent_deit_base.leaplab_in1k": 82.0,
    "agent_pvt_tiny.leaplab_in1k": 78.4,
    "agent_pvt_small.leaplab_in1k": 82.2,
    "agent_pvt_medium.leaplab_in1k": 83.4,
    "agent_pvt_medium_256.leaplab_in1k": 83.8,
    "agent_pvt_large.leaplab_in1k": 83.7,
    "agent_swin_tiny.leaplab_in1k": 82.6,
    "agent_swin_small.leaplab_in1k": 83.7,
    "agent_swin_small_288.leaplab_in1k": 84.1,
    "agent_swin_base.leaplab_in1k": 84.0,
    "agent_swin_base_384.leaplab_in1k": 84.9,
    "agent_cswin_tiny.leaplab_in1k": 83.1,
    "agent_cswin_small.leaplab_in1k": 83.9,
    "agent_cswin_base.leaplab_in1k": 84.7,
    "agent_cswin_base_384.leaplab_in1k": 85.8,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""

_DEIT_NANO = {"dim": 64, "num_heads": 2, "patch_size": 4, "img_size": 32, "agent_num": 16}
_DEIT_TINY = {"dim": 192, "num_heads": 3}
_DEIT_SMALL = {"dim": 384, "num_heads": 6, "drop_path_rate": 0.1}
_DEIT_BASE = {"dim": 768, "num_heads": 12, "agent_num": 81, "mixer_depth": 4, "drop_path_rate": 0.3}
_PYRAMID = {"agent_num": (9, 16, 49, 49)}
# The host convolves the values.
_CSWIN = {**_PYRAMID, "attn_type": "AABB", "local": False}


@register_model
def agent_deit_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-DeiT of under a million parameters for small images, for tests and the quickstart; not from the paper."""
    return _agent(DeiT, "agent_deit_nano", pretrained, kwargs, **_DEIT_NANO)


@register_model
def agent_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-DeiT-T."""
    return _agent(DeiT, "agent_deit_tiny", pretrained, kwargs, **_DEIT_TINY)


@register_model
def agent_deit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-DeiT-S."""
    return _agent(DeiT, "agent_deit_small", pretrained, kwargs, **_DEIT_SMALL)


@register_model
def agent_deit_small_448(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-DeiT-S for 448 x 448 pixels."""
    return _agent(DeiT, "agent_deit_small_448", pretrained, kwargs, img_size=448, **_DEIT_SMALL)


@register_model
def agent_deit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-DeiT-B, whose first four blocks have agent attention and whose others softmax attention."""
    return _agent(DeiT, "agent_deit_base", pretrained, kwargs, **_DEIT_BASE)


@register_model
def agent_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-PVT-T."""
    return _agent(PVT, "agent_pvt_tiny", pretrained, kwargs, **_PYRAMID, **pvt.TINY)


@register_model
def agent_pvt_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-PVT-S."""
    return _agent(PVT, "agent_pvt_small", pretrained, kwargs, **_PYRAMID, **pvt.SMALL)


@register_model
def agent_pvt_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-PVT-M."""
    return _agent(PVT, "agent_pvt_medium", pretrained, kwargs, **_PYRAMID, **pvt.MEDIUM)


@register_model
def agent_pvt_medium_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-PVT-M for 256 x 256 pixels."""
    return _agent(PVT, "agent_pvt_medium_256", pretrained, kwargs, **_PYRAMID, img_size=256, **pvt.MEDIUM)


@register_model
def agent_pvt_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-PVT-L."""
    return _agent(PVT, "agent_pvt_large", pretrained, kwargs, **_PYRAMID, **pvt.LARGE)


@register_model
def agent_swin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-Swin-T."""
    return _agent(Swin, "agent_swin_tiny", pretrained, kwargs, attn_type="AAAB", **_PYRAMID, **swin.TINY)


@register_model
def agent_swin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-Swin-S."""
    return _agent(Swin, "agent_swin_small", pretrained, kwargs, attn_type="AABB", **_PYRAMID, **swin.SMALL)


@register_model
def agent_swin_small_288(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-Swin-S for 288 x 288 pixels."""
    return _agent(Swin, "agent_swin_small_288", pretrained, kwargs, attn_type="AABB", **_PYRAMID, **swin.SMALL_288)


@register_model
def agent_swin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-Swin-B."""
    return _agent(Swin, "agent_swin_base", pretrained, kwargs, attn_type="AAMB2", **_PYRAMID, **swin.BASE)


@register_model
def agent_swin_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-Swin-B for 384 x 384 pixels."""
    return _agent(Swin, "agent_swin_base_384", pretrained, kwargs, attn_type="AAMB2", **_PYRAMID, **swin.BASE_384)


@register_model
def agent_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-CSwin-T."""
    return _agent(CSwin, "agent_cswin_tiny", pretrained, kwargs, **_CSWIN, **cswin.TINY)


@register_model
def agent_cswin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-CSwin-S."""
    return _agent(CSwin, "agent_cswin_small", pretrained, kwargs, **_CSWIN, **cswin.SMALL)


@register_model
def agent_cswin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-CSwin-B."""
    return _agent(CSwin, "agent_cswin_base", pretrained, kwargs, **_CSWIN, **cswin.BASE)


@register_model
def agent_cswin_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Agent-CSwin-B for 384 x 384 pixels."""
    return _agent(CSwin, "agent_cswin_base_384", pretrained, kwargs, **_CSWIN, **cswin.BASE_384)
