"""The body of DeiT: patches of 16, a class token that the head reads, and positions added once.

Touvron et al., "Training data-efficient image transformers & distillation through attention", arXiv 2012.12877, without
its distillation token, as Agent and InLine build it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import ClassifierHead, SelectAdaptivePool2d, to_2tuple, trunc_normal_
from torch import Tensor, nn

from ...layers import Mlp, PatchStem, PositionTable, build_mixer
from ..isotropic import Isotropic

PATCH = 16
OFFICIAL_NAMES = [
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.", "stem."),
    (r"^pos_embed$", "position.table"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


class DeiT(Isotropic):
    """Isotropic body with a class token and a mixer of choice, made for images of `img_size`; tokens are [B, 1 + N, C].

    Other sizes work: tables of positions are resampled for them, at each call, or for good by `set_input_size`.

    Args:
        mixer: name of the mixer.
        mixer_depth: number of blocks, from the first on, that have the mixer; the others have softmax attention.
        mixer_options: what else the mixer is built with.
        dim, depth, num_heads: channels, blocks and heads.
        global_pool: "token" for the class token, else how to pool all others.
        kwargs: the rest of `Isotropic`'s arguments, e.g. `drop_path_rate`, `in_chans`.
    """

    official_names = OFFICIAL_NAMES
    num_prefix_tokens = 1
    output_fmt = "NLC"

    def __init__(
        self,
        mixer: str,
        dim: int,
        num_heads: int,
        depth: int = 12,
        mixer_depth: int | None = None,
        mixer_options: Mapping[str, Any] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        global_pool: str = "token",
        patch_size: int = PATCH,
        **kwargs: Any,
    ):
        self.patch_size = patch_size
        grid = _grid(img_size, patch_size)

        def build(index: int, dim: int) -> nn.Module:
            new = mixer_depth is None or index < mixer_depth
            return build_mixer(
                mixer if new else "softmax",
                dim,
                num_heads,
                grid=grid,
                num_prefix_tokens=self.num_prefix_tokens,
                qkv_bias=qkv_bias,
                proj_drop=proj_drop_rate,
                **(mixer_options or {} if new else {}),
            )

        super().__init__(
            dim,
            depth,
            stem=partial(PatchStem, patch=patch_size, norm=nn.Identity),
            mixer=build,
            mlp=lambda dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            norm=partial(nn.LayerNorm, eps=1e-6),
            global_pool=global_pool,
            **kwargs,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = PositionTable(dim, grid, "bicubic")
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.cls_position, std=0.02)

    def build_head(self, drop_rate: float) -> ClassifierHead:
        return TokenHead(self.num_features, self.num_classes, self.global_pool, drop_rate)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """[B, in_chans, H, W] -> tokens [B, 1 + h * w, dim], and (h, w)."""
        x = self.position(self.stem(x))
        first = (self.cls_token + self.cls_position).expand(x.shape[0], -1, -1)
        return torch.cat((first, x.flatten(1, 2)), 1), (x.shape[1:3],)

    def intermediate(self, x: Tensor, index: int, norm: bool, *context: Any) -> Tensor:
        (grid,) = context
        return super().intermediate(x, index, norm)[:, self.num_prefix_tokens :].unflatten(1, grid)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample all tables of positions for images of `img_size`."""
        for module in (self.position, *(block.mixer for block in self.blocks)):
            module.set_grid(_grid(img_size, self.patch_size))

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "cls_position", "position.table"}

    def group_matcher(self, coarse: bool = False) -> dict:
        return {**super().group_matcher(coarse), "stem": r"^(?:stem|cls_token|cls_position|position)"}


class TokenHead(ClassifierHead):
    """Pooling and classifier of tokens [B, 1 + N, C], the class token first: [B, 1 + N, C] -> [B, num_classes]."""

    def __init__(self, in_features: int, num_classes: int, pool_type: str, drop_rate: float):
        super().__init__(in_features, num_classes, pool_type="", drop_rate=drop_rate, input_fmt="NHWC")
        self.reset(num_classes, pool_type)

    def reset(self, num_classes: int, pool_type: str | None = None, **kwargs: Any) -> None:
        """Replace the classifier by a fresh one, and the pooling if one is named."""
        if pool_type is not None:
            self.global_pool = TokenPool(pool_type)
        super().reset(num_classes, **kwargs)


class TokenPool(nn.Module):
    """Pool tokens [B, 1 + N, C]: "token" takes the class token, "" does nothing, else timm's pooling of the others."""

    def __init__(self, pool_type: str):
        super().__init__()
        self.pool_type = pool_type
        of_patches = pool_type not in ("", "token")
        self.pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=True, input_fmt="NHWC") if of_patches else None

    def feat_mult(self) -> int:
        """Return channels after pooling over channels before."""
        return self.pool.feat_mult() if self.pool else 1

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            return self.pool(x[:, 1:, None])
        return x[:, 0] if self.pool_type == "token" else x


def _grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    return tuple(-(-size // patch_size) for size in to_2tuple(img_size))
