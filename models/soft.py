"""SOFT and SOFT++: pyramids of softmax-free attention, whose last stage has softmax attention and a class token.

Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", arXiv 2110.11945, and "Softmax-free Linear
Transformers", arXiv 2207.03341. Weights and configurations of fudan-zvg/SOFT.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import ClassifierHead, register_notrace_module, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import ConvActDownsample, ConvStem, Mlp, PositionTable, TokenPosition, build_mixer
from .backbone import build_backbone
from .hosts.deit import TokenHead
from .pyramid import Pyramid, Stage
from .soft_checkpoint import cfg, checkpoint_filter_fn, plus_cfg


@register_notrace_module
class TokenStage(Stage):
    """A stage whose blocks see a class token before those of the map, [B, H, W, C] -> [B, 1 + h * w, dim]."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        x = self.downsample(x)
        grid = x.shape[1:3]
        x = self.position(x)
        for block in self.blocks:
            x = block(x, grid)
        return self.norm(x)


class SOFT(Pyramid):
    """Pyramid of softmax-free attention, made for images of `img_size`; its last features are tokens, [B, 1 + N, C].

    Other sizes work: tables of positions are resampled for them, at each call, or for good by `set_input_size`.

    Args:
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        ratios, kernel_sizes: of softmax-free attention, of each stage but the last.
        normalized: normalise as SOFT++.
        stem_dim: channels of the stem's first convolutions.
        mlp_ratio: hidden channels of the MLP over channels.
        drop_path_rate: rate of stochastic depth; the softmax-free stages have plain dropout of that rate instead.
        global_pool: "token" for the class token, else how to pool all others.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `in_chans`.

    Raises:
        ValueError: arguments of stages do not match `depths`.
    """

    output_fmt = "NLC"

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        ratios: Sequence[int] = (8, 4, 2),
        kernel_sizes: Sequence[int] = (9, 5, 3),
        normalized: bool = False,
        stem_dim: int = 32,
        mlp_ratio: float = 4.0,
        img_size: int | tuple[int, int] = 224,
        global_pool: str = "token",
        **kwargs: Any,
    ):
        last = len(depths) - 1
        given = (("num_heads", num_heads, last + 1), ("ratios", ratios, last), ("kernel_sizes", kernel_sizes, last))
        for name, values, count in given:
            if len(values) != count:
                raise ValueError(f"{name}={tuple(values)} must have {count} values for depths={tuple(depths)}")

        def mixer(stage: int, index: int, dim: int) -> nn.Module:
            if stage == last:
                return build_mixer("softmax", dim, num_heads[stage])
            options = {"ratio": ratios[stage], "kernel_size": kernel_sizes[stage], "normalized": normalized}
            return build_mixer("soft", dim, num_heads[stage], **options)

        def mlp(stage: int, dim: int) -> nn.Module:
            act = nn.GELU if stage == last else partial(nn.GELU, approximate="tanh")
            return Mlp(dim, int(dim * mlp_ratio), act_layer=act)

        def position(stage: int, dim: int) -> nn.Module:
            return (TokenPosition if stage == last else PositionTable)(dim, _grid(img_size, stage))

        super().__init__(
            dims=embed_dims,
            depths=depths,
            stem=lambda in_chans, dim: ConvStem(in_chans, (stem_dim, stem_dim, dim), (2, 1, 2)),
            downsample=ConvActDownsample,
            mixer=mixer,
            mlp=mlp,
            norm=[*[nn.LayerNorm] * last, partial(nn.LayerNorm, eps=1e-6)],
            post_norm=[*["sum"] * last, False],
            position=position,
            global_pool=global_pool,
            **kwargs,
        )
        end = self.stages[-1]
        self.stages[-1] = TokenStage(end.downsample, end.blocks, end.norm, end.position)
        for block in (block for stage in self.stages[:-1] for block in stage.blocks):
            rate = getattr(block.drop_path1, "drop_prob", 0.0)
            block.drop_path1, block.drop_path2 = nn.Dropout(rate), nn.Dropout(rate)

    def build_head(self, drop_rate: float) -> ClassifierHead:
        return TokenHead(self.num_features, self.num_classes, self.global_pool, drop_rate)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        return self.stem(x), (x.shape[-2:],)

    def intermediate(self, x: Tensor, index: int, norm: bool, *context: Any) -> Tensor:
        x = super().intermediate(x, index, norm)
        return x if x.dim() == 4 else x[:, 1:].unflatten(1, _grid(tuple(context[0]), index))

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample all tables of positions for images of `img_size`."""
        for index, stage in enumerate(self.stages):
            stage.position.set_grid(_grid(img_size, index))

    def no_weight_decay(self) -> set[str]:
        tables = {f"stages.{index}.position.table" for index in range(len(self.stages))}
        tokens = {name for name, _ in self.named_parameters() if name.endswith((".cls_token", ".cls_position"))}
        return tables | tokens


def _grid(img_size: int | tuple[int, int], stage: int) -> tuple[int, int]:
    return tuple(-(-size // (4 * 2**stage)) for size in to_2tuple(img_size))


def _soft(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(SOFT, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


default_cfgs = generate_default_cfgs(
    {
        "soft_nano.untrained": cfg(size=32, crop_pct=1.0, notes=()),
        "soft_tiny.fudan_in1k": cfg("1S04DCotIOkP0DaBb8WStQ513z82qT9de"),
        "soft_tiny.fudan_cuda_in1k": cfg("1inDKh3Wz_2KQgGH_2ywU5H_gLKZpIz_u"),
        "soft_small.fudan_in1k": cfg(),
        "soft_medium.fudan_in1k": cfg(),
        "soft_large.fudan_in1k": cfg(),
        "soft_huge.fudan_in1k": cfg(),
        "softpp_tiny.fudan_in1k": plus_cfg("1Isy5b9v_4pyIXDqhKPNRq3WKH0etDlfl"),
        "softpp_small.fudan_in1k": plus_cfg("1OBjn7FzVdNP1Urqxq7X0yDykyPhxAAW1"),
        "softpp_medium.fudan_in1k": plus_cfg("1K2C6daaJn3jwurWh38uvV7rexirWjuzh"),
        "softpp_large.fudan_in1k": plus_cfg("1aRYuF_gbBGyiXUDKEcpHJmM04SdvTUdP"),
        "softpp_huge.fudan_in1k": plus_cfg(),
    }
)

published_top1 = {
    "soft_tiny.fudan_in1k": 79.3,
    "soft_small.fudan_in1k": 82.2,
    "soft_medium.fudan_in1k": 82.9,
    "soft_large.fudan_in1k": 83.1,
    "soft_huge.fudan_in1k": 83.3,
    "softpp_tiny.fudan_in1k": 79.4,
    "softpp_small.fudan_in1k": 82.4,
    "softpp_medium.fudan_in1k": 83.1,
    "softpp_large.fudan_in1k": 83.3,
    "softpp_huge.fudan_in1k": 83.4,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it."""

_TINY = {"embed_dims": (64, 128, 320, 512), "depths": (1, 2, 3, 2), "num_heads": (2, 4, 10, 16), "drop_path_rate": 0.1}
_SMALL = {**_TINY, "depths": (1, 3, 20, 4)}
_MEDIUM = {**_TINY, "embed_dims": (64, 128, 288, 512), "depths": (1, 3, 29, 5), "num_heads": (2, 4, 9, 16)}
_LARGE = {**_TINY, "depths": (1, 3, 40, 5)}
_HUGE = {**_TINY, "embed_dims": (64, 128, 352, 512), "depths": (1, 5, 49, 5), "num_heads": (2, 4, 11, 16)}


@register_model
def soft_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT of under a million parameters, for tests and the quickstart; not from the paper."""
    config = {"embed_dims": (16, 32, 64, 96), "depths": (1, 2, 3, 2), "num_heads": (1, 2, 4, 6)}
    return _soft("soft_nano", pretrained, kwargs, **{"stem_dim": 16, "img_size": 32, **config})


@register_model
def soft_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT-Tiny."""
    return _soft("soft_tiny", pretrained, kwargs, **_TINY)


@register_model
def soft_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT-Small."""
    return _soft("soft_small", pretrained, kwargs, **_SMALL)


@register_model
def soft_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT-Medium."""
    return _soft("soft_medium", pretrained, kwargs, **_MEDIUM)


@register_model
def soft_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT-Large."""
    return _soft("soft_large", pretrained, kwargs, **_LARGE)


@register_model
def soft_huge(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT-Huge."""
    return _soft("soft_huge", pretrained, kwargs, **_HUGE)


@register_model
def softpp_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT++-Tiny."""
    return _soft("softpp_tiny", pretrained, kwargs, normalized=True, **_TINY)


@register_model
def softpp_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT++-Small."""
    return _soft("softpp_small", pretrained, kwargs, normalized=True, **_SMALL)


@register_model
def softpp_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT++-Medium."""
    return _soft("softpp_medium", pretrained, kwargs, normalized=True, **_MEDIUM)


@register_model
def softpp_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT++-Large."""
    return _soft("softpp_large", pretrained, kwargs, normalized=True, **_LARGE)


@register_model
def softpp_huge(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SOFT++-Huge."""
    return _soft("softpp_huge", pretrained, kwargs, normalized=True, **_HUGE)
