"""Swin Transformer's blocks: windows read in place, with relative position bias and the mask of shifted ones."""

from timm.models import swin_transformer
from torch import Tensor, nn

from .swap import Swap, silent, unknown
from .windows import attend, pad


class SwinTransformerBlock(swin_transformer.SwinTransformerBlock):
    """timm's block with `window_attention`."""

    def _attn(self, x: Tensor) -> Tensor:
        attn = self.attn
        if unsupported(self) or not silent(attn, attn.softmax, attn.attn_drop):
            return super()._attn(x)
        height, width = x.shape[1:3]
        rows, columns = self.shift_size
        shifted = any(self.shift_size)
        if shifted:
            x = x.roll((-rows, -columns), (1, 2))
        x = pad(x, self.window_size)
        mask = self.get_attn_mask(x) if self.dynamic_mask else self.attn_mask
        bias = attn._get_rel_pos_bias().squeeze(0)
        x = attend(attn.qkv(x), attn.num_heads, self.window_size, attn.scale, bias, mask)
        x = attn.proj_drop(attn.proj(x[:, :height, :width]))
        return x.roll((rows, columns), (1, 2)) if shifted else x


def unsupported(block: nn.Module) -> str | None:
    return None if type(block.attn) is swin_transformer.WindowAttention else unknown(block.attn)


SWAP = Swap(swin_transformer.SwinTransformerBlock, SwinTransformerBlock, "window_attention", unsupported)
