"""Norms for channels-last maps; torch.nn.LayerNorm is one already."""

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a channels-last map, [B, H, W, C] -> [B, H, W, C]; state dict as torch.nn.BatchNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class RMSNorm(nn.RMSNorm):
    """Division by the root mean square of the last axes, then a gain, in the dtype of the input also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SyncBatchNorm(nn.SyncBatchNorm):
    """`BatchNorm` over the images of all processes, on GPUs; state dict as torch.nn.BatchNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def synchronize(module: nn.Module) -> None:
    """Put a `SyncBatchNorm` of the same parameters, statistics and settings in place of every `BatchNorm` inside."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            norm = SyncBatchNorm(child.num_features, child.eps, child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, norm.train(child.training))
        else:
            synchronize(child)
