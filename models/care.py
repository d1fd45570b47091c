"""CARE Transformer: pyramids whose blocks attend to some channels, convolve others, and let them interact.

Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual Interaction", arXiv
2411.16170. Weights and configurations of zhouyuan888888/CARE-Transformer.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import ClassifierHead, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import BatchNorm, MixerBlock, NormPatchDownsample, PatchStem, build_mixer
from .backbone import build_backbone
from .care_checkpoint import cfg, checkpoint_filter_fn, released_cfg
from .pyramid import Pyramid


class BareBlock(MixerBlock):
    """A block that is its mixer alone, without a shortcut."""

    def _forward(self, x: Tensor) -> Tensor:
        return self.drop_path1(self.mixer(x))


class NormedHead(ClassifierHead):
    """Pooling, GELU, LayerNorm and classifier; without pooling and classes, nothing."""

    def __init__(self, in_features: int, num_classes: int, pool_type: str, drop_rate: float):
        super().__init__(in_features, num_classes, pool_type, drop_rate, input_fmt="NHWC")
        self._fit_norm()

    def _fit_norm(self, **like: Any) -> None:
        """Make the norm fit what is pooled, a fresh one if there are other channels."""
        width = self.in_features * self.global_pool.feat_mult()
        if isinstance(self.fc, nn.Identity) and not self.global_pool.pool_type:
            self.norm = None
        elif getattr(self, "norm", None) is None or self.norm.normalized_shape != (width,):
            self.norm = nn.LayerNorm(width, eps=1e-6, **like)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        own = next(self.parameters(), None)
        super().reset(num_classes, pool_type)
        self._fit_norm(**({} if own is None else {"device": own.device, "dtype": own.dtype}))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.norm is not None:
            x = self.norm(F.gelu(x))
        x = self.drop(x)
        return x if pre_logits else self.fc(x)


class CARE(Pyramid):
    """Pyramid of `CAREMixer`, convolutions in the early stages and linear attention in the late ones, with two heads.

    The second head is for distillation and works as timm's distilled models have it: logits are the mean of both, in
    training too, so that every training loop can use the model; after `set_distilled_training(True)` the model returns
    both in training, (logits, logits for the teacher's labels), as the published training and timm's
    `TokenDistillationTask` take them.

    The last block ends inside its second interaction, whose hidden channels are those of the last features.

    Args:
        embed_dims, depths: channels and blocks of each stage.
        num_heads: heads of linear attention of each stage; None for convolutions in its place.
        ratios: of both interactions, of each stage.
        layer_scale: initial layer scale.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `in_chans`.

    Raises:
        ValueError: `num_heads` or `ratios` does not match `depths`.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int | None],
        ratios: Sequence[tuple[int, int]],
        layer_scale: float | None = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ):
        for name, values in (("num_heads", num_heads), ("ratios", ratios)):
            if len(values) != len(depths):
                raise ValueError(f"{name}={tuple(values)} must be one for each stage of depths={tuple(depths)}")

        def mixer(stage: int, index: int, dim: int) -> nn.Module:
            last = (stage, index) == (len(depths) - 1, depths[-1] - 1)
            return build_mixer("care", dim, num_heads[stage], ratios=ratios[stage], project=not last)

        super().__init__(
            dims=embed_dims,
            depths=depths,
            out_dims=[*embed_dims[:-1], embed_dims[-1] * ratios[-1][1]],
            stem=partial(PatchStem, norm=BatchNorm, ceil_mode=False),
            downsample=partial(NormPatchDownsample, norm=BatchNorm, ceil_mode=False),
            mixer=mixer,
            mlp=lambda stage, dim: None,
            norm=nn.Identity,
            layer_scale=layer_scale,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            **kwargs,
        )
        end = self.stages[-1].blocks
        end[-1] = BareBlock(embed_dims[-1], end[-1].mixer, None, nn.Identity, drop_path=drop_path_rate)
        self.head_dist = self.build_head(drop_rate)
        self.distilled_training = False
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.is_meta:
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def build_head(self, drop_rate: float) -> ClassifierHead:
        return NormedHead(self.num_features, self.num_classes, self.global_pool, drop_rate)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' logits in training, instead of their mean."""
        self.distilled_training = enable

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        """Return the classifiers of both heads."""
        return self.head.fc, self.head_dist.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.head_dist.in_features = self.head.in_features
        self.head_dist.reset(num_classes, global_pool)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Map -> logits [B, num_classes], or pooled features [B, head_hidden_size]: the mean of both heads'.

        After `set_distilled_training(True)`, in training, the logits of both.
        """
        outs = self.head(x, pre_logits=pre_logits), self.head_dist(x, pre_logits=pre_logits)
        if self.distilled_training and self.training and not pre_logits:
            return outs
        return (outs[0] + outs[1]) / 2


def _care(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(CARE, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


default_cfgs = generate_default_cfgs(
    {
        "care_nano.untrained": cfg(size=32, crop_pct=1.0),
        "care_s0.zhouyuan_in1k": released_cfg(),
        "care_s1.zhouyuan_in1k": released_cfg(),
        "care_s2.zhouyuan_in1k": released_cfg(),
    }
)

published_top1 = {
    "care_s0.zhouyuan_in1k": 78.4,
    "care_s1.zhouyuan_in1k": 80.1,
    "care_s2.zhouyuan_in1k": 82.1,
}
"""ImageNet-1k top-1 accuracy, in percent, as the repository states it; with distillation."""

_S0 = {
    "embed_dims": (32, 64, 128, 256),
    "depths": (2, 4, 8, 4),
    "num_heads": (None, None, 2, 2),
    "ratios": ((2, 2), (2, 4), (4, 4), (4, 4)),
}
_S1 = {**_S0, "depths": (3, 6, 10, 6), "ratios": ((2, 4), (2, 4), (4, 4), (4, 4))}
_S2 = {**_S1, "embed_dims": (32, 64, 192, 384), "num_heads": (None, None, 3, 3), "ratios": ((4, 4),) * 4}


@register_model
def care_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CARE of under a million parameters, for tests and the quickstart; not from the paper."""
    config = {
        "embed_dims": (16, 32, 64, 96),
        "depths": (1, 2, 2, 2),
        "num_heads": (None, None, 1, 2),
        "ratios": ((2, 2), (2, 4), (4, 4), (4, 2)),
        "layer_scale": 1.0,
    }
    return _care("care_nano", pretrained, kwargs, **config)


@register_model
def care_s0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CARE-S0."""
    return _care("care_s0", pretrained, kwargs, **_S0)


@register_model
def care_s1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CARE-S1."""
    return _care("care_s1", pretrained, kwargs, **_S1)


@register_model
def care_s2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CARE-S2."""
    return _care("care_s2", pretrained, kwargs, **_S2)
