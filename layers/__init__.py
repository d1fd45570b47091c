"""Modules that models are built from: token mixers, one a file, and the stems, norms and blocks around them."""

from typing import Any

from torch import nn

from .block import MixerBlock
from .conv_mlp import ConvMLP
from .downsample import ConvDownsample, PatchMerging
from .global_attention import GlobalAttention
from .neighborhood import NeighborhoodAttention
from .norm import BatchNorm
from .position import resize_bias_table
from .stem import ConvTokenizer, PatchStem

MIXERS: dict[str, type[nn.Module]] = {
    "global_attention": GlobalAttention,
    "neighborhood_attention": NeighborhoodAttention,
}


def build_mixer(name: str, dim: int, num_heads: int, **kwargs: Any) -> nn.Module:
    """Build the token mixer called `name`, a module [B, H, W, dim] -> [B, H, W, dim].

    Args:
        name: one of `MIXERS`.
        kwargs: passed to the mixer, e.g. `window` and `dilation` of neighborhood attention.

    Raises:
        ValueError: no mixer has that name.
    """
    if name not in MIXERS:
        raise ValueError(f"mixer {name!r} is unknown; there are {', '.join(sorted(MIXERS))}")
    return MIXERS[name](dim, num_heads, **kwargs)
