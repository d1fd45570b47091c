"""The body that RAVLT's family shares: gated attention, linear in the wide stages and softmax in the narrow ones."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..layers import BatchNorm, ConditionalPosition, ConvStem, PatchDownsample, ResidualConvMLP, build_mixer
from .checkpoint import check_fit, rename, unwrap
from .pyramid import Pyramid


class Projection(nn.Module):
    """Linear, batch norm and SiLU before the pooling, [B, h, w, in_features] -> [B, h, w, out_features]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.out_features = out_features
        self.proj = nn.Linear(in_features, out_features)
        self.norm = BatchNorm(out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.proj(x)))


class GatedPyramid(Pyramid):
    """Pyramid of gated mixers with rotary and conditional positions, and a projection before the head.

    Args:
        embed_dims, depths, num_heads: channels, blocks and attention heads of each stage.
        mixers: token mixer of each stage, by name.
        mixer_kwargs: what all of them are built with.
        mlp_ratio: hidden channels of the MLP over channels.
        mlp_positions: whether blocks have conditional positions before the MLP too.
        projection: channels of the projection before the head, the model's `num_features`.
        layer_scale: initial layer scale, one or one for each stage.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `drop_path_rate`, `in_chans`, and `out_norms`: True for the
            official backbones of detectors and segmenters.

    Raises:
        ValueError: `num_heads` or `mixers` does not match `depths`.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mixers: Sequence[str],
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 3.5,
        mlp_positions: bool = False,
        projection: int = 1024,
        layer_scale: float | Sequence[float] = 1.0,
        **kwargs: Any,
    ):
        for name, values in (("num_heads", num_heads), ("mixers", mixers)):
            if len(values) != len(depths):
                raise ValueError(f"{name}={tuple(values)} must be one for each stage of depths={tuple(depths)}")
        norm = partial(nn.LayerNorm, eps=1e-6)
        super().__init__(
            dims=embed_dims,
            depths=depths,
            stem=lambda in_chans, dim: ConvStem(
                in_chans, (dim // 2, dim // 2, dim // 2, dim), (2, 1, 1, 2), last_act=False, act=F.gelu
            ),
            downsample=partial(PatchDownsample, kernel=3, padding=1, norm=BatchNorm, ceil_mode=False),
            mixer=lambda stage, index, dim: build_mixer(mixers[stage], dim, num_heads[stage], **(mixer_kwargs or {})),
            mlp=lambda stage, dim: ResidualConvMLP(dim, int(dim * mlp_ratio)),
            norm=norm,
            final_norm=lambda dim: Projection(dim, projection),
            extras=lambda stage, index, dim, rate: {
                "before": ConditionalPosition(dim),
                "between": ConditionalPosition(dim) if mlp_positions else None,
            },
            layer_scale=layer_scale,
            out_norm=norm,
            **kwargs,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


OFFICIAL_NAMES = [
    (r"^patch_embed\.proj\.(\d+)\.", lambda m: f"stem.{'bns' if int(m[1]) % 3 else 'convs'}.{int(m[1]) // 3}."),
    (r"^layers\.(\d+)\.downsample\.reduction\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.conv."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"^layers\.(\d+)\.RoPE\.angle$", r"stages.\1.frequency"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.norm([12])\.norm\.", r".norm\1."),
    (r"\.attn\.(?:qkvo|qkvg)\.", ".mixer.qkvg."),
    (r"\.attn\.lepe\.", ".mixer.local."),
    (r"\.attn\.(?:proj|out_proj)\.", ".mixer.proj."),
    (r"\.attn\.ln\.", ".mixer.norm."),
    (r"\.ffn\.", ".mlp."),
    (r"\.(?:pos|cpe1)\.", ".before.conv."),
    (r"\.cpe2\.", ".between.conv."),
    (r"^norm\.(\w+)$", r"norm.norm.\1"),
    (r"^proj\.", "norm.proj."),
    (r"^extra_norms\.(\d+)\.norm\.", r"out_norms.\1."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier, detector or segmenter, or of ours, in our names.

    A file holds the frequencies of the rotary positions once for each stage, or not; here each block has them.

    Raises:
        ValueError: it does not fit the model.
    """
    state = {key: _flat(value) for key, value in rename(unwrap(state_dict), OFFICIAL_NAMES).items()}
    of_stages = {key: state.pop(key) for key in list(state) if re.fullmatch(r"stages\.\d+\.frequency", key)}
    for key, own in model.state_dict().items():
        if key.endswith(".core.frequency"):
            state.setdefault(key, of_stages.get(f"{key.split('.blocks')[0]}.frequency", own))
    check_fit(state, model, optional=("norm.", "out_norms."))
    return state


def _flat(value: Tensor) -> Tensor:
    """Return a 1x1 convolution's weight as a linear layer's, and a scale of channels as one axis."""
    if value.dim() != 4 or tuple(value.shape[2:]) != (1, 1):
        return value
    return value.flatten() if value.shape[0] == 1 else value.flatten(1)
