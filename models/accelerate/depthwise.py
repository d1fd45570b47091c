"""Large depthwise convolutions, such as ConvNeXt's, for the shapes that were measured to win."""

import torch
from torch import Tensor, nn

from ...kernels.autocast import is_on
from ...kernels.depthwise import depthwise_conv2d
from . import measured
from .swap import Swap

SMALLEST = 7
"""Extent from which a depthwise kernel counts as large."""


class Conv2d(nn.Conv2d):
    """A convolution with `depthwise_conv2d`, for channels-last maps of shapes where that was measured to be faster."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or not self._wins(x):
            return super().forward(x)
        out = depthwise_conv2d(x.permute(0, 2, 3, 1), self.weight, self.bias, self.dilation)
        return out.permute(0, 3, 1, 2)

    def _wins(self, x: Tensor) -> bool:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if is_on(device) else x.dtype
        if self.weight.dtype not in (dtype, torch.float32):
            return False
        gains = measured.DEPTHWISE_GAINS.get((self.kernel_size, self.dilation, dtype, device))
        if not gains:
            return False
        forward, both = measured.nearest(gains, x.shape[1:])
        return (both if torch.is_grad_enabled() else forward) > 1


def _is_large(module: nn.Module) -> bool:
    """Return whether a convolution is depthwise, large, and zero-padded to keep the map."""
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    if not depthwise or max(module.kernel_size) < SMALLEST:
        return False
    kept = tuple(
        dilation * (extent - 1) // 2 for extent, dilation in zip(module.kernel_size, module.dilation, strict=True)
    )
    odd = all(extent % 2 for extent in module.kernel_size)
    return module.stride == (1, 1) and module.padding_mode == "zeros" and odd and module.padding in (kept, "same")


def _unmeasured(module: nn.Module) -> str | None:
    geometry = (module.kernel_size, module.dilation)
    gains = [
        gain for key, shapes in measured.DEPTHWISE_GAINS.items() if key[:2] == geometry for gain in shapes.values()
    ]
    if any(max(gain) > 1 for gain in gains):
        return None
    rows, columns = module.kernel_size
    return f"no gain measured for {rows}x{columns} kernels"


SWAP = Swap(nn.Conv2d, Conv2d, "depthwise_conv2d", _unmeasured, _is_large)
