"""InLine: injective linear attention with a predicted local residual, in the bodies of DeiT, PVT, Swin and CSwin.

Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv 2412.06590. Weights and
configurations of LeapLabTHU/InLine.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from . import leaplab
from .backbone import Backbone

_cfg = partial(
    leaplab.cfg,
    "InLine",
    paper_name="Bridging the Divide: Reconsidering Softmax and Linear Attention",
    paper_ids="arXiv:2412.06590",
)


def _inline(host: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return leaplab.build(host, variant, pretrained, kwargs, mixer="inline", **config)


default_cfgs = generate_default_cfgs({})

published_top1: dict[str, float] = {}
"""ImageNet-1k top-1 accuracy, in percent, as repository and paper state it."""
