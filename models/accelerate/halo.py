"""HaloNet's attention: blocks of queries that see their block and a halo of tokens around it.

Blocks are the strides of neighborhood attention, with a window of a block and its halo. The position logits are a
product of queries and relative positions: they join q . k as further channels, in which a key is the unit vector of
its place. Places are counted modulo the window, where the keys of one window are all different. That is exact, but the
further channels and the padding cost more than timm's attention matrix: halonet26t runs at 0.48x on an H200.
"""

import torch
import torch.nn.functional as F
from timm.layers import halo_attn
from torch import Tensor, nn

from ...kernels.neighborhood import neighborhood_attention
from .swap import Swap, pointwise, readable, silent


class HaloAttn(halo_attn.HaloAttn):
    """timm's attention with `neighborhood_attention`."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        whole = height % self.block_size == 0 and width % self.block_size == 0
        if unsupported(self) or not silent(self.pos_embed) or not whole:
            return super().forward(x)
        x = x.permute(0, 2, 3, 1)
        q = pointwise(self.q, x).unflatten(-1, (self.num_heads, -1))
        kv = pointwise(self.kv, x).unflatten(-1, (self.num_heads, -1))
        k, v = kv.split((self.dim_head_qk, self.dim_head_v), -1)
        rows = torch.einsum("bhwnd,hrd->bhwnr", q, readable(self._relative(self.pos_embed.height_rel, height), q))
        columns = torch.einsum("bhwnd,wrd->bhwnr", q, readable(self._relative(self.pos_embed.width_rel, width), q))
        logits = torch.cat((rows, columns), -1)
        q = torch.cat((q * self.scale, logits * self.scale if self.scale_pos_embed else logits), -1)
        before, after = self.block_size, self.halo_size
        q, k, v = (F.pad(y, (0, 0, 0, 0, before, after, before, after)) for y in (q, k, v))
        places = [F.one_hot(torch.arange(n, device=x.device) % self.win_size, self.win_size) for n in k.shape[1:3]]
        rows, columns = places[0][:, None].expand(*k.shape[1:3], -1), places[1].expand(*k.shape[1:3], -1)
        places = torch.cat((rows, columns), -1).to(k.dtype)[None, :, :, None]
        k = torch.cat((k, places.expand(*k.shape[:-1], -1)), -1)
        # Kernels want heads of equal width, a multiple of 8.
        wide = -(-max(k.shape[-1], v.shape[-1]) // 8) * 8
        q, k, v = (F.pad(y, (0, wide - y.shape[-1])) for y in (q, k, v))
        out = neighborhood_attention(q, k, v, self.win_size, stride=self.block_size, scale=1.0)
        out = out[:, before : before + height, before : before + width, :, : self.dim_head_v]
        return self.pool(out.flatten(-2).permute(0, 3, 1, 2))

    def _relative(self, table: Tensor, length: int) -> Tensor:
        """Return the positions of a window's keys relative to each query along an axis, [length, window, D].

        Args:
            table: [2 * window - 1, D], read at key - query + window - 1, both counted from the start of the window.
        """
        query = torch.arange(length, device=table.device)
        # Tokens are counted from the padded start, one block before the map; a window starts a halo before its block.
        start = query // self.block_size * self.block_size + self.block_size - self.halo_size
        place = torch.arange(self.win_size, device=table.device)
        key = (place - start[:, None]) % self.win_size
        return table[key - (query % self.block_size)[:, None] + self.win_size - 1]


def unsupported(attn: nn.Module) -> str | None:
    return "it strides its queries" if attn.block_stride > 1 else None


SWAP = Swap(halo_attn.HaloAttn, HaloAttn, "neighborhood_attention", unsupported, if_measured=True)
