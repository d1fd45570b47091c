"""The two-layer perceptron of transformer blocks."""

import timm.layers
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.gelu import gelu
from .plain import is_plain


class Mlp(timm.layers.Mlp):
    """timm's MLP; compiled, it computes the activation anew in the backward instead of keeping it.

    The activation is the widest tensor of a block. A compiler computes it in the same pass as its gradient, so it is
    mostly memory that changes; without a compiler it would cost a pass of its own, and is kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.training and torch.compiler.is_compiling() and torch.is_grad_enabled():
            return checkpoint(self._second_half, x, use_reentrant=False)
        return self._second_half(x)

    def _second_half(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(activate(self.act, x)))))


def activate(act: nn.Module, x: Tensor) -> Tensor:
    """Return an activation of `x`; for GELU compiled in half precision on GPUs by fewer instructions."""
    plain = is_plain(act, nn.GELU) and act.approximate == "none"
    # Asked first: symbolic tracing has no tensors, and does not compile.
    if torch.compiler.is_compiling() and plain and x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        return gelu(x)
    return act(x)
