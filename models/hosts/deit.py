"""The body of DeiT: patches of 16, a class token that the head reads, and positions added once.

Mixers that take maps only, such as convolutions and windows, have no place for a class token: with one of those the
body has none, and the head reads the mean of the tokens.

Touvron et al., "Training data-efficient image transformers & distillation through attention", arXiv 2012.12877, without
its distillation token, as Agent and InLine build it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import ClassifierHead, SelectAdaptivePool2d, to_2tuple, trunc_normal_
from torch import Tensor, nn

from ...layers import Mlp, PatchStem, PositionTable, build_mixer, takes_tokens
from ..isotropic import Isotropic

PATCH = 16
OFFICIAL_NAMES = [
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.", "stem."),
    (r"^pos_embed$", "position.table"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


class DeiT(Isotropic):
    """Isotropic body with a mixer of choice, made for images of `img_size`; with a class token, features [B, 1 + N, C].

    Other sizes work: tables of positions are resampled for them, at each call, or for good by `set_input_size`.

    Args:
        mixer: name of the mixer.
        mixer_depth: number of blocks, from the first on, that have the mixer; the others have softmax attention.
        mixer_kwargs: hyper-parameters of the mixer.
        dim, depth, num_heads: channels, blocks and heads.
        class_token: whether there is one; default where the mixer takes tokens. Without, features are maps
            [B, h, w, C].
        global_pool: "token" for the class token, else how to pool all others; default "token", or "avg" without one.
        kwargs: the rest of `Isotropic`'s arguments, e.g. `drop_path_rate`, `in_chans`.

    Raises:
        ValueError: no mixer has that name or such a hyper-parameter, a class token is asked for and the mixer takes
            maps only, or `global_pool` is "token" and there is none.
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
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        class_token: bool | None = None,
        global_pool: str | None = None,
        patch_size: int = PATCH,
        **kwargs: Any,
    ):
        grid = _grid(img_size, patch_size)
        offers = {"num_heads": num_heads, "grid": grid, "qkv_bias": qkv_bias, "proj_drop": proj_drop_rate}

        def build(index: int, dim: int) -> nn.Module:
            new = mixer_depth is None or index < mixer_depth
            name, options = (mixer, mixer_kwargs or {}) if new else ("softmax", {})
            return build_mixer(name, dim, offers={**offers, "num_prefix_tokens": self.num_prefix_tokens}, **options)

        with torch.device("meta"):
            with_tokens = takes_tokens(build(0, dim))
        class_token = with_tokens if class_token is None else class_token
        if class_token and not with_tokens:
            raise ValueError(f"class_token=True: mixer={mixer!r} takes maps only; pass class_token=False")
        if global_pool == "token" and not class_token:
            raise ValueError(f"global_pool='token' needs a class token, and with mixer={mixer!r} there is none: 'avg'")
        self.patch_size = patch_size
        self.num_prefix_tokens = int(class_token)
        self.output_fmt = "NLC" if class_token else "NHWC"

        super().__init__(
            dim,
            depth,
            stem=partial(PatchStem, patch=patch_size, norm=nn.Identity),
            mixer=build,
            mlp=lambda dim: Mlp(dim, int(dim * mlp_ratio), drop=proj_drop_rate),
            norm=partial(nn.LayerNorm, eps=1e-6),
            global_pool=global_pool if global_pool is not None else "token" if class_token else "avg",
            **kwargs,
        )
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.cls_position = nn.Parameter(torch.zeros(1, 1, dim))
            trunc_normal_(self.cls_token, std=0.02)
            trunc_normal_(self.cls_position, std=0.02)
        self.position = PositionTable(dim, grid, "bicubic")

    def build_head(self, drop_rate: float) -> ClassifierHead:
        if not self.num_prefix_tokens:
            return super().build_head(drop_rate)
        return TokenHead(self.num_features, self.num_classes, self.global_pool, drop_rate)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """[B, in_chans, H, W] -> tokens [B, 1 + h * w, dim], and (h, w); or the map alone."""
        x = self.position(self.stem(x))
        if not self.num_prefix_tokens:
            return x, ()
        first = (self.cls_token + self.cls_position).expand(x.shape[0], -1, -1)
        return torch.cat((first, x.flatten(1, 2)), 1), (x.shape[1:3],)

    def intermediate(self, x: Tensor, index: int, norm: bool, *context: Any) -> Tensor:
        if not self.num_prefix_tokens:
            return super().intermediate(x, index, norm)
        (grid,) = context
        return super().intermediate(x, index, norm)[:, self.num_prefix_tokens :].unflatten(1, grid)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample all tables of positions for images of `img_size`."""
        for module in (self.position, *(block.mixer for block in self.blocks)):
            if hasattr(module, "set_grid"):
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
