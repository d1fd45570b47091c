"""Agent attention in the bodies of DeiT, PVT, Swin and CSwin.

Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", arXiv 2312.08874. Weights and
configurations of LeapLabTHU/Agent-Attention.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from . import leaplab
from .backbone import Backbone

_cfg = partial(
    leaplab.cfg,
    "Agent-Attention",
    paper_name="Agent Attention: On the Integration of Softmax and Linear Attention",
    paper_ids="arXiv:2312.08874",
)


def _agent(host: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return leaplab.build(host, variant, pretrained, kwargs, mixer="agent", **config)


default_cfgs = generate_default_cfgs({})

published_top1: dict[str, float] = {}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""
