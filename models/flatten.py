"""FLatten: focused linear attention in the bodies of PVT, PVTv2, Swin and CSwin.

Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention", arXiv 2308.00442. Weights and
configurations of LeapLabTHU/FLatten-Transformer.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from . import leaplab
from .backbone import Backbone

_cfg = partial(
    leaplab.cfg,
    "FLatten-Transformer",
    paper_name="FLatten Transformer: Vision Transformer using Focused Linear Attention",
    paper_ids="arXiv:2308.00442",
)


def _flatten(host: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return leaplab.build(host, variant, pretrained, kwargs, mixer="focused_linear", **config)


default_cfgs = generate_default_cfgs({})

published_top1: dict[str, float] = {}
"""ImageNet-1k top-1 accuracy, in percent, as repository and paper state it."""
