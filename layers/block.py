"""The residual block that every body is made of."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class MixerBlock(nn.Module):
    """Token mixer and MLP, each with a norm, a residual, and optionally layer scale and stochastic depth.

    What a block is called with besides the tokens is the mixer's, e.g. the map's size where class tokens hide it. A
    mixer with an attribute `reads_block_input` is called with the block's input too.

    Two more modules [B, H, W, C] -> [B, H, W, C], with residuals of their own, may stand before everything and between
    mixer and MLP; those families that have them bring them as `before` and `between`.

    Pre-norm: x + ls1(mixer(norm1(x))), then x + ls2(mlp(norm2(x))). Post-norm: x + ls1(norm1(mixer(x))), and so on.
    With `post_norm="sum"`: norm1(x + ls1(mixer(x))), and so on.

    Args:
        mixer, mlp: [B, H, W, C] -> [B, H, W, C]; either is None in a block that is the other one only.
        norm: builder of a norm for C channels.
        layer_scale: initial value of the per-channel scales, or None for no scales.
        drop_path: probability of dropping each residual branch, per sample, in training.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module | None,
        mlp: nn.Module | None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        post_norm: bool | str = False,
        before: nn.Module | None = None,
        between: nn.Module | None = None,
    ):
        super().__init__()
        self.post_norm = post_norm
        self.grad_checkpointing = False
        self.before = before or nn.Identity()
        self.mixer = mixer
        if mixer is not None:
            self.norm1 = norm(dim)
            self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
            self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.between = between or nn.Identity()
        self.mlp = mlp
        if mlp is not None:
            self.norm2 = norm(dim)
            self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
            self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(self._forward, x, *context, use_reentrant=False)
        return self._forward(x, *context)

    def _forward(self, x: Tensor, *context: Any) -> Tensor:
        x = self.before(x)
        if self.mixer is not None:
            if getattr(self.mixer, "reads_block_input", False):
                context = (*context, x)
            x = self._residual(self.norm1, self.drop_path1, self.ls1, self.mixer, x, *context)
        x = self.between(x)
        if self.mlp is not None:
            x = self._residual(self.norm2, self.drop_path2, self.ls2, self.mlp, x)
        return x

    def _residual(
        self, norm: nn.Module, drop_path: nn.Module, scale: nn.Module, body: nn.Module, x: Tensor, *context: Any
    ) -> Tensor:
        if self.post_norm == "sum":
            return norm(x + drop_path(scale(body(x, *context))))
        if isinstance(scale, LayerScale) and not self.post_norm and self._folds(body):
            return x + drop_path(body(norm(x), *context, gain=scale.gamma))
        return x + drop_path(scale(self._branch(norm, body, x, *context)))

    @staticmethod
    def _folds(body: nn.Module) -> bool:
        """Return whether a body multiplies by the layer scale itself, a pass less over the map in compiled training.

        Without a compiler modules are called one by one, as those who watch them expect.
        """
        return torch.compiler.is_compiling() and torch.is_grad_enabled() and getattr(body, "takes_gain", False)

    def _branch(self, norm: nn.Module, body: nn.Module, x: Tensor, *context: Any) -> Tensor:
        return norm(body(x, *context)) if self.post_norm else body(norm(x), *context)
