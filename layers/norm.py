"""Norms for channels-last maps; torch.nn.LayerNorm is one already."""

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a channels-last map, [B, H, W, C] -> [B, H, W, C]; state dict as torch.nn.BatchNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


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
