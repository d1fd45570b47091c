"""DaViT's spatial blocks: attention inside windows, without bias."""

from timm.models import davit
from torch import Tensor, nn

from .swap import Swap, silent, unknown
from .windows import attend, pad


class SpatialBlock(davit.SpatialBlock):
    """timm's block with `window_attention`."""

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        if unsupported(self) or not silent(attn, attn.softmax):
            return super().forward(x)
        height, width = x.shape[2:]
        tokens = self.cpe1(x).flatten(2).mT
        grid = self.norm1(tokens).unflatten(1, (height, width))
        out = attend(attn.qkv(pad(grid, self.window_size)), attn.num_heads, self.window_size, attn.scale)
        out = attn.proj(out[:, :height, :width]).flatten(1, 2)
        tokens = tokens + self.drop_path1(out)
        tokens = self.cpe2(tokens.mT.unflatten(2, (height, width))).flatten(2).mT
        tokens = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return tokens.mT.unflatten(2, (height, width))


def unsupported(block: nn.Module) -> str | None:
    if type(block.attn) is not davit.WindowAttention:
        return unknown(block.attn)
    return None if block.ffn else "it has no MLP"


SWAP = Swap(davit.SpatialBlock, SpatialBlock, "window_attention", unsupported)
