"""The weights and biases of large kernel attention, as one value."""

from typing import NamedTuple

from torch import Tensor, float32


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

    def taps(self) -> tuple[Tensor, Tensor]:
        """Return the weights of both depthwise convolutions in the order of [KH, KW, C], flat and in float32.

        Fused kernels read them so. Whichever backend runs keeps them, since compilers must know what a call returns.
        """
        # A custom op must not return its inputs, hence the copy.
        weights = (self.local_weight, self.spatial_weight)
        return tuple(weight.permute(2, 3, 1, 0).to(float32, copy=True).flatten() for weight in weights)
