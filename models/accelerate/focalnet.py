"""FocalNet's focal modulation."""

from timm.models import focalnet
from torch import Tensor, nn

from ...kernels.focal import focal_modulation
from ...layers.focal_modulation import aligned_linear
from .swap import Swap, pointwise, readable, silent


class FocalModulation(focalnet.FocalModulation):
    """timm's modulation with `focal_modulation`, on a channels-last view of the map."""

    def forward(self, x: Tensor) -> Tensor:
        if _context(self) is not None:
            return super().forward(x)
        projected = pointwise(self.f, x.permute(0, 2, 3, 1), aligned_linear)
        weights = [readable(layer[0].weight, projected) for layer in self.focal_layers]
        point, bias = (readable(x, projected) for x in (self.h.weight.flatten(1), self.h.bias))
        out = self.norm(focal_modulation(projected, weights, point, bias, self.normalize_modulator).permute(0, 3, 1, 2))
        return self.proj_drop(pointwise(self.proj, out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _context(module: nn.Module) -> str | None:
    """Return why the operator does not compute the module, or None."""
    if not _plain_gelu(module.act):
        return "its global context is not the plain GELU of the mean"
    for layer in module.focal_layers:
        if len(layer) != 2 or not _same_depthwise(layer[0]) or not _plain_gelu(layer[1]) or not silent(layer):
            return "a level is not a plain depthwise convolution without bias and a GELU"
    if type(module.h) is not nn.Conv2d or module.h.kernel_size != (1, 1) or not silent(module.h):
        return "what mixes the modulator's channels is not a plain 1x1 convolution"
    return None


def _plain_gelu(module: nn.Module) -> bool:
    return type(module) is nn.GELU and module.approximate == "none" and silent(module)


def _same_depthwise(module: nn.Module) -> bool:
    """Return whether a module is a square depthwise convolution of odd extent, zero-padded to keep the map."""
    if type(module) is not nn.Conv2d or module.bias is not None or not silent(module):
        return False
    extent = module.kernel_size[0]
    plain = module.stride == module.dilation == (1, 1) and module.padding_mode == "zeros"
    kept = extent % 2 == 1 and module.kernel_size == (extent, extent) and module.padding == (extent // 2, extent // 2)
    return plain and kept and module.groups == module.in_channels == module.out_channels


SWAP = Swap(focalnet.FocalModulation, FocalModulation, "focal_modulation", _context)
