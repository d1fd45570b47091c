"""What focal modulation's backward pass needs of its forward pass, as one value."""

from typing import NamedTuple

from torch import Tensor


class Saved(NamedTuple):
    """What goes into `point`, [B, H, W, C]; the L contexts and what goes into their GELUs, [B, L, H, W, C] each; and
    the mean of the last context, [B, C], in at least float32.
    """

    modulator: Tensor
    contexts: Tensor
    convolved: Tensor
    mean: Tensor
