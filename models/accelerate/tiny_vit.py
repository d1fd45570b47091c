"""TinyViT's blocks: attention inside windows, with a bias for each distance."""

from timm.models import tiny_vit
from torch import Tensor, nn

from ...kernels.window import window_attention
from .swap import Swap, readable, silent, unknown
from .windows import pad


class TinyVitBlock(tiny_vit.TinyVitBlock):
    """timm's block with `window_attention`."""

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        if unsupported(self) or not silent(attn):
            return super().forward(x)
        height, width = x.shape[1:3]
        window = (self.window_size, self.window_size)
        # The padding is normed with the map, so its tokens are the norm's bias, not zeros.
        qkv = attn.qkv(attn.norm(pad(x, window))).unflatten(-1, (attn.num_heads, -1))
        q, k, v = qkv.split((attn.key_dim, attn.key_dim, attn.val_dim), -1)
        bias = readable(attn.get_attention_biases(x.device), q)
        out = window_attention(q, k, v, window, bias=bias, scale=attn.scale)[:, :height, :width]
        x = x + self.drop_path1(attn.proj(out.flatten(-2)))
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = x.flatten(1, 2)
        return (tokens + self.drop_path2(self.mlp(tokens))).unflatten(1, (height, width))


def unsupported(block: nn.Module) -> str | None:
    return None if type(block.attn) is tiny_vit.Attention else unknown(block.attn)


SWAP = Swap(tiny_vit.TinyVitBlock, TinyVitBlock, "window_attention", unsupported)
