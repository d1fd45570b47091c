"""The weights and biases of large kernel attention, as one value."""

from typing import NamedTuple

from torch import Tensor


class Parameters(NamedTuple):
    """Weights [C, 1, k, k] of the local and of the dilated (spatial) depthwise convolution and [C, C] of the pointwise
    one, and their biases [C]; or the gradients of all these.
    """

    local_weight: Tensor
    spatial_weight: Tensor
    point_weight: Tensor
    local_bias: Tensor | None
    spatial_bias: Tensor | None
    point_bias: Tensor | None
