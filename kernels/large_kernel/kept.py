"""What the forward pass of large kernel attention keeps for the backward pass."""

from typing import NamedTuple

from torch import Tensor


class Kept(NamedTuple):
    """Local and spatial context [B, H, W, C], what an activation makes of x, and `Parameters.taps`."""

    local: Tensor
    spatial: Tensor
    active: Tensor | None
    local_taps: Tensor
    spatial_taps: Tensor
