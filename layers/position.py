"""Tables of positions: learnt codes of places, and biases of relative positions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..kernels import autocast
from ..kernels.precision import widen


def resize_bias_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a relative position bias table [heads, 2a-1, 2b-1] bicubically to [heads, *size], keeping its centre.

    The same table comes back where the size is unchanged. Source: as Swin Transformer and the released `11x11interp`
    weights of DiNAT-L do it.
    """
    if tuple(table.shape[1:]) == tuple(size):
        return table
    return F.interpolate(table[None], size=size, mode="bicubic", align_corners=False)[0]


def pairwise_bias(table: Tensor, height: int, width: int) -> Tensor:
    """Return the bias of every pair of tokens of a window, [heads, N, N], from the table's entry at key - query.

    Args:
        table: [heads, 2a-1, 2b-1]; of a window smaller than a x b it is the middle that is read.
    """
    rows, columns = ((size + 1) // 2 - extent for size, extent in zip(table.shape[1:], (height, width), strict=True))
    table = table[:, rows : rows + 2 * height - 1, columns : columns + 2 * width - 1]
    # The keys of query i read a run of the table that ends i places before the last.
    pairs = table.unfold(1, height, 1).unfold(2, width, 1).flip(1, 2)
    return pairs.reshape(-1, height * width, height * width)


class PositionTable(nn.Module):
    """Add a learnt code of every place to a channels-last map, [B, H, W, C] -> [B, H, W, C].

    The codes, `table` of shape [H, W, C], are made for maps of size `grid` and are resampled for any other.

    Args:
        dim: channels C.
        grid: map size (H, W).
        mode: "bilinear" or "bicubic".
    """

    def __init__(self, dim: int, grid: tuple[int, int], mode: str = "bilinear"):
        super().__init__()
        self.mode = mode
        self.table = nn.Parameter(torch.zeros(*grid, dim))
        trunc_normal_(self.table, std=0.02)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample the codes for maps of size `grid` (H, W)."""
        with torch.no_grad():
            self.table = nn.Parameter(resize_codes(self.table, grid, self.mode).clone())

    def resized(self, name: str, table: Tensor) -> Tensor:
        """Return the codes [H, W, C] of a checkpoint, made for another size, in the shape of these."""
        return resize_codes(table, self.table.shape[:2], self.mode)

    def forward(self, x: Tensor) -> Tensor:
        return x + resize_codes(self.table, x.shape[1:3], self.mode)

    def extra_repr(self) -> str:
        return f"grid={tuple(self.table.shape[:2])}, mode={self.mode}"


class TokenPosition(PositionTable):
    """Add codes to a map and put a class token with a code of its own before it, [B, H, W, C] -> [B, 1 + H * W, C]."""

    def __init__(self, dim: int, grid: tuple[int, int], mode: str = "bilinear"):
        super().__init__(dim, grid, mode)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, dim))
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.cls_position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        first = (self.cls_token + self.cls_position).expand(x.shape[0], -1, -1)
        return torch.cat((first, super().forward(x).flatten(1, 2)), 1)


def resize_codes(table: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resample a table of codes [H, W, C] to [*size, C]; the same table comes back where the size is unchanged."""
    if _same(table.shape[:2], size):
        return table
    rows, columns = _resampling(table, table.shape[:2], size, mode)
    with autocast.off(table):
        resized = widen(table)
        if rows is not None:
            resized = torch.einsum("ph,hwc->pwc", rows, resized)
        if columns is not None:
            resized = torch.einsum("qw,pwc->pqc", columns, resized)
    return resized.to(table.dtype)


def resize_map(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resample maps [A, B, H, W] to [A, B, *size] in at least float32, corners not aligned.

    The same maps come back where the size is unchanged. It is torch's interpolation, done as two matrix products: on a
    CPU they take a fraction of its time, and on a GPU their gradient is deterministic.
    """
    if _same(maps.shape[-2:], size):
        return maps
    rows, columns = _resampling(maps, maps.shape[-2:], size, mode)
    with autocast.off(maps):
        resized = widen(maps)
        if rows is not None:
            resized = rows @ resized
        if columns is not None:
            resized = resized @ columns.mT
    return resized.to(maps.dtype)


def _same(size: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether sizes are the same; one that stands for any, in a model that is exported, is not."""
    if any(isinstance(length, torch.SymInt) for length in other):
        return False
    return tuple(size) == tuple(other)


def pool_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average a channels-last map [B, H, W, C] over `size` bins, as torch's adaptive pooling does: [B, *size, C].

    The bins overlap where `size` does not divide the map. Two matrix products, as in `resize_map`.
    """
    with autocast.off(x):
        wide = widen(x)
        rows, columns = (
            F.adaptive_avg_pool1d(torch.eye(length, dtype=wide.dtype, device=x.device), bins).mT
            for length, bins in zip(x.shape[1:3], size, strict=True)
        )
        return torch.einsum("ph,bhqc->bpqc", rows, torch.einsum("qw,bhwc->bhqc", columns, wide)).to(x.dtype)


def _resampling(like: Tensor, lengths: Sequence[int], sizes: Sequence[int], mode: str) -> list[Tensor | None]:
    """Return the matrices [size, length] that resample the lines of each axis, None for an axis that stays."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    # On the meta device torch spells an interpolation out in Python, which takes longer than to compute it.
    device = "cpu" if like.is_meta else like.device
    found = []
    for length, size in zip(lengths, sizes, strict=True):
        matrix = None
        if not _same((length,), (size,)):
            lines = torch.eye(length, dtype=dtype, device=device).view(1, length, length, 1)
            lines = F.interpolate(lines, size=(size, 1), mode=mode, align_corners=False)
            matrix = lines[0, :, :, 0].mT.to(like.device)
        found.append(matrix)
    return found
