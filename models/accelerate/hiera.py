"""Hiera's attention inside mask units, and the windowed blocks of SAM 2's Hiera."""

from timm.models import hiera, hieradet_sam2
from torch import Tensor, nn

from .swap import Swap, silent, unknown
from .windows import attend, pad


class MaskUnitAttention(hiera.MaskUnitAttention):
    """timm's attention with `window_attention`.

    Hiera orders its tokens by their place in the unit first and by the unit second, so a unit is a column of a map.
    """

    def forward(self, x: Tensor) -> Tensor:
        if _unpooled_units(self):
            return super().forward(x)
        grid = self.qkv(x).unflatten(1, (self.window_size, -1))
        return self.proj(attend(grid, self.heads, (self.window_size, 1), self.scale).flatten(1, 2))


def _unpooled_units(attn: nn.Module) -> str | None:
    if not attn.use_mask_unit_attn:
        return "it attends globally"
    return "it pools its queries" if attn.q_stride > 1 else None


class MultiScaleBlock(hieradet_sam2.MultiScaleBlock):
    """timm's block with `window_attention`."""

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        if _unpooled_windows(self) or not silent(attn):
            return super().forward(x)
        height, width = x.shape[1:3]
        qkv = attn.qkv(pad(self.norm1(x), self.window_size))
        out = attend(qkv, attn.num_heads, self.window_size, attn.scale)[:, :height, :width]
        x = x + self.drop_path1(self.ls1(attn.proj(out)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _unpooled_windows(block: nn.Module) -> str | None:
    if type(block.attn) is not hieradet_sam2.MultiScaleAttention:
        return unknown(block.attn)
    if not block.is_windowed:
        return "it attends globally"
    return "it pools its queries" if block.q_stride is not None or block.dim != block.dim_out else None


SWAPS = (
    Swap(hiera.MaskUnitAttention, MaskUnitAttention, "window_attention", _unpooled_units),
    Swap(hieradet_sam2.MultiScaleBlock, MultiScaleBlock, "window_attention", _unpooled_windows),
)
