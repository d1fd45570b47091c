"""GCViT's blocks of local attention inside windows, with relative position bias."""

from timm.models import gcvit
from torch import Tensor, nn

from .swap import Swap, silent, unknown
from .windows import attend


class GlobalContextVitBlock(gcvit.GlobalContextVitBlock):
    """timm's block with `window_attention`, where its queries are its own."""

    def _window_attn(self, x: Tensor, q_global: Tensor | None = None) -> Tensor:
        attn = self.attn
        if unsupported(self) or not silent(attn, attn.attn_drop, attn.rel_pos):
            return super()._window_attn(x, q_global)
        bias = attn.rel_pos.get_bias().squeeze(0)
        x = attend(attn.qkv(x), attn.num_heads, self.window_size, attn.scale, bias)
        return attn.proj_drop(attn.proj(x))


def unsupported(block: nn.Module) -> str | None:
    if type(block.attn) is not gcvit.WindowAttentionGlobal:
        return unknown(block.attn)
    # Which image's queries a window of a batch gets differs between the versions of timm.
    return "its windows share the queries of the whole image" if block.attn.use_global else None


SWAP = Swap(gcvit.GlobalContextVitBlock, GlobalContextVitBlock, "window_attention", unsupported)
