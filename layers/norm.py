"""Norms for channels-last maps; torch.nn.LayerNorm is one already."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import autocast, dispatch
from ..kernels.batch_norm import batch_norm


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of a channels-last map, [B, H, W, C] -> [B, H, W, C]; state dict as torch.nn.BatchNorm2d.

    Under autocast the result is in the autocast dtype, as that of a convolution is: a residual stream in float32 stays
    so, what branches off it does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and self.training and x.is_cuda and self._usual and x.shape[:-1].numel() > 1:
            return self._train(x)
        out = super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return autocast.cast(out)[0]

    @property
    def _usual(self) -> bool:
        """Whether our operator serves these settings, and a backend that is forced: else torch's does."""
        served = dispatch.requested() in ("auto", *batch_norm.operator.backends)
        return served and self.affine and self.track_running_stats and self.momentum is not None

    def _train(self, x: Tensor) -> Tensor:
        """Normalise by our operator: of torch's, compilers keep copies of centred maps for the gradient.

        Uncompiled, torch's keeps none, and is launched sooner.
        """
        out, mean, var = batch_norm(x, self.weight, self.bias, self.eps)
        count = x.shape[:-1].numel()
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        return out


class RMSNorm(nn.RMSNorm):
    """Division by the root mean square of the last axes, then a gain, in the dtype of the input also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SyncBatchNorm(nn.SyncBatchNorm):
    """`BatchNorm` over the images of all processes, on GPUs; state dict as torch.nn.BatchNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return autocast.cast(out)[0]


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
