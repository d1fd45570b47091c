"""MaxViT's attention inside windows and over grids."""

from collections.abc import Sequence

from timm.layers import RelPosBias, RelPosBiasTf
from timm.models import maxxvit
from torch import Tensor, nn

from ...kernels.neighborhood import neighborhood_attention
from ...kernels.window import window_attention
from .swap import Swap, readable, silent, unknown


class PartitionAttentionCl(maxxvit.PartitionAttentionCl):
    """timm's block with `window_attention` or, for grids, `neighborhood_attention`."""

    def _partition_attn(self, x: Tensor) -> Tensor:
        attn = self.attn
        watched = [attn, attn.attn_drop] + ([] if attn.rel_pos is None else [attn.rel_pos])
        whole = all(extent % tokens == 0 for extent, tokens in zip(x.shape[1:3], self.partition_size, strict=True))
        if unsupported(self) or not silent(*watched) or not whole:
            return super()._partition_attn(x)
        out = _attend(attn, attn.qkv(x), self.partition_size, not self.partition_block)
        return attn.proj_drop(attn.proj(out))


def _attend(attn: nn.Module, qkv: Tensor, size: Sequence[int], grid: bool) -> Tensor:
    """Attend within windows of `size` tokens, or among `size` tokens spread evenly over the map: [B, H, W, heads * D].

    Args:
        qkv: [B, H, W, 3 * heads * D], ordered as `attn` has it.
    """
    order, axis = ((attn.num_heads, 3, -1), -2) if attn.head_first else ((3, attn.num_heads, -1), -3)
    q, k, v = qkv.unflatten(-1, order).unbind(axis)
    if not grid:
        bias = None if attn.rel_pos is None else attn.rel_pos.get_bias().flatten(0, -3)
        return window_attention(q, k, v, size, bias=readable(bias, q), scale=attn.scale).flatten(-2)
    # As many neighbours as there are tokens at that distance are all of them.
    distance = [extent // tokens for extent, tokens in zip(q.shape[1:3], size, strict=True)]
    bias = readable(_table(attn.rel_pos), q)
    return neighborhood_attention(q, k, v, size, dilation=distance, bias=bias, scale=attn.scale).flatten(-2)


def _table(rel_pos: nn.Module | None) -> Tensor | None:
    """Return a bias as a table [heads, 2h-1, 2w-1] read at key - query."""
    if rel_pos is None:
        return None
    table = rel_pos.relative_position_bias_table
    if type(rel_pos) is RelPosBiasTf:
        return table
    height, width = rel_pos.window_size
    return table.mT.unflatten(1, (2 * height - 1, 2 * width - 1)).flip(1, 2)


def unsupported(block: nn.Module) -> str | None:
    attn = block.attn
    if type(attn) is not maxxvit.AttentionCl:
        return unknown(attn)
    if block.partition_block or attn.rel_pos is None:
        return None
    if type(attn.rel_pos) not in (RelPosBias, RelPosBiasTf):
        return "the position bias of its grid is no table"
    even = any(extent % 2 == 0 for extent in block.partition_size)
    return "neighborhood attention with a position bias needs grids of odd extents" if even else None


SWAP = Swap(
    maxxvit.PartitionAttentionCl, PartitionAttentionCl, "window_attention or neighborhood_attention", unsupported
)
