"""How weights start where torch's own rule is not the published one."""

import math

from torch import nn


def fan_out_normal_(module: nn.Conv2d | nn.Linear) -> None:
    """Fill a weight from a normal distribution of variance 2 / fan-out (of one group, if there are groups), bias by 0.

    Source: arXiv 1502.01852, as VAN and PVTv2 start their convolutions.
    """
    fan_out = module.weight[:, 0].numel() // getattr(module, "groups", 1)
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
