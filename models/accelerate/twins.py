"""Twins' locally grouped attention: windows without bias."""

from timm.models import twins
from torch import Tensor

from .swap import Swap, silent
from .windows import attend, pad


class LocallyGroupedAttn(twins.LocallyGroupedAttn):
    """timm's attention with `window_attention`."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not silent(self.attn_drop):
            return super().forward(x, size)
        height, width = size
        window = (self.ws, self.ws)
        grid = pad(x.unflatten(1, (height, width)), window)
        out = attend(self.qkv(grid), self.num_heads, window, self.scale)[:, :height, :width]
        return self.proj_drop(self.proj(out.flatten(1, 2)))


SWAP = Swap(twins.LocallyGroupedAttn, LocallyGroupedAttn, "window_attention")
