"""Norms for channels-last maps; torch.nn.LayerNorm is one already."""

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a channels-last map, [B, H, W, C] -> [B, H, W, C]; state dict as torch.nn.BatchNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
