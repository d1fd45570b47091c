"""Tables of relative positions."""

import torch.nn.functional as F
from torch import Tensor


def resize_bias_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a relative position bias table [heads, 2a-1, 2b-1] bicubically to [heads, *size], keeping its centre.

    The same table comes back where the size is unchanged. Source: as Swin Transformer and the released `11x11interp`
    weights of DiNAT-L do it.
    """
    if tuple(table.shape[1:]) == tuple(size):
        return table
    return F.interpolate(table[None], size=size, mode="bicubic", align_corners=False)[0]
