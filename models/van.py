"""VAN: pyramids of large kernel attention.

Guo et al., "Visual Attention Network", arXiv 2202.09741. Weights and configurations of
Visual-Attention-Network/VAN-Classification.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import BatchNorm, ConvMLP, PatchDownsample, PatchStem, build_mixer, fan_out_normal_
from .backbone import build_backbone
from .pyramid import Pyramid
from .van_checkpoint import HUGGING_FACE, OPENMMLAB, cfg, checkpoint_filter_fn, in22k_cfg, in_folder


class VAN(Pyramid):
    """Pyramid whose mixers are large kernel attention, with batch norm in the blocks and a LayerNorm after each stage.

    Args:
        embed_dims, depths: channels and blocks of each stage.
        mlp_ratios: hidden channels of the MLP over channels, of each stage.
        kernel_size, dilated_kernel_size, dilation: the large kernel, as `LargeKernelAttention` takes it.
        layer_scale: initial layer scale, or None.
        norm_eps: epsilon of the LayerNorms; 1e-5 in the official segmentation backbone.
        proj_drop_rate: dropout in the MLPs.
        kwargs: the rest of `Pyramid`'s arguments, e.g. `drop_path_rate`, `in_chans`.

    Raises:
        ValueError: `mlp_ratios` does not match `depths`.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        kernel_size: int = 5,
        dilated_kernel_size: int = 7,
        dilation: int = 3,
        layer_scale: float | None = 1e-2,
        norm_eps: float = 1e-6,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        if len(mlp_ratios) != len(depths):
            raise ValueError(f"mlp_ratios={tuple(mlp_ratios)} must be one for each stage of depths={tuple(depths)}")
        super().__init__(
            dims=embed_dims,
            depths=depths,
            stem=partial(PatchStem, patch=4, kernel=7, padding=3, norm=BatchNorm, ceil_mode=False),
            downsample=partial(PatchDownsample, patch=2, kernel=3, padding=1, norm=BatchNorm, ceil_mode=False),
            mixer=lambda stage, index, dim: build_mixer(
                "lka",
                dim,
                kernel_size=kernel_size,
                dilated_kernel_size=dilated_kernel_size,
                dilation=dilation,
            ),
            mlp=lambda stage, dim: ConvMLP(dim, int(dim * mlp_ratios[stage]), drop=proj_drop_rate),
            norm=BatchNorm,
            stage_norm=partial(nn.LayerNorm, eps=norm_eps),
            # The last stage's norm is the one before the head.
            final_norm=nn.Identity,
            layer_scale=layer_scale,
            **kwargs,
        )
        for part in (self.stem, self.stages):
            for module in part.modules():
                # The official model's convolutions, of which our linear layers are the pointwise ones.
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    fan_out_normal_(module)


def _van(variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    return build_backbone(VAN, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


# Only the pre-trained weights of the largest models were released, not what fine-tuning made of them.
_unreleased = ("fine-tuned weights were never released; the recipe of this name makes them",)
_fine_tuned = partial(in22k_cfg, notes=_unreleased)

default_cfgs = generate_default_cfgs(
    {
        "van_nano.untrained": cfg(size=32, crop_pct=1.0),
        "van_b0.van_in1k": cfg(HUGGING_FACE + "VAN-Tiny-original/resolve/main/van_tiny_754.pth.tar"),
        "van_b1.van_in1k": cfg(HUGGING_FACE + "VAN-Small-original/resolve/main/van_small_811.pth.tar"),
        "van_b2.van_in1k": cfg(HUGGING_FACE + "VAN-Base-original/resolve/main/van_base_828.pth.tar"),
        "van_b3.van_in1k": cfg(HUGGING_FACE + "VAN-Large-original/resolve/main/van_large_839.pth.tar"),
        "van_b4.openmmlab_in1k": cfg(OPENMMLAB + "van-b4_3rdparty_in1k_20220909-f4665b92.pth"),
        "van_b4.van_in1k": cfg(notes=in_folder("van_b4.pth")),
        "van_b4.van_in22k_ft_in1k": _fine_tuned(),
        "van_b4.van_in22k_ft_in1k_384": _fine_tuned(384),
        "van_b4.van_in22k": in22k_cfg(num_classes=21841, notes=in_folder("van_b4_22k.pth")),
        "van_b5.van_in22k_ft_in1k": _fine_tuned(),
        "van_b5.van_in22k_ft_in1k_384": _fine_tuned(384),
        "van_b5.van_in22k": in22k_cfg(num_classes=21841, notes=in_folder("van_b5_22k.pth")),
        "van_b6.van_in22k_ft_in1k": _fine_tuned(),
        "van_b6.van_in22k_ft_in1k_384": _fine_tuned(384),
        "van_b6.van_in22k": in22k_cfg(num_classes=21841, notes=in_folder("van_b6_22k.pth")),
    }
)

published_top1 = {
    "van_b0.van_in1k": 75.4,
    "van_b1.van_in1k": 81.1,
    "van_b2.van_in1k": 82.8,
    "van_b3.van_in1k": 83.9,
    "van_b4.openmmlab_in1k": 84.13,
    "van_b4.van_in1k": 84.2,
    "van_b4.van_in22k_ft_in1k": 85.7,
    "van_b4.van_in22k_ft_in1k_384": 86.6,
    "van_b5.van_in22k_ft_in1k": 86.3,
    "van_b5.van_in22k_ft_in1k_384": 87.0,
    "van_b6.van_in22k_ft_in1k": 86.9,
    "van_b6.van_in22k_ft_in1k_384": 87.8,
}
"""ImageNet-1k top-1 accuracy, in percent, as repository and paper state it; OpenMMLab's file as OpenMMLab does."""

_B2 = {"embed_dims": (64, 128, 320, 512), "depths": (3, 3, 12, 3), "drop_path_rate": 0.1}
_B5 = {"embed_dims": (96, 192, 480, 768), "depths": (3, 3, 24, 3), "drop_path_rate": 0.2}


@register_model
def van_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN of under a million parameters, for tests and the quickstart; not from the paper."""
    config = {"embed_dims": (16, 32, 64, 96), "depths": (2, 2, 4, 2), "mlp_ratios": (4, 4, 4, 4)}
    return _van("van_nano", pretrained, kwargs, **config)


@register_model
def van_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN-B0, "tiny" in the repository."""
    config = {"embed_dims": (32, 64, 160, 256), "depths": (3, 3, 5, 2), "drop_path_rate": 0.1}
    return _van("van_b0", pretrained, kwargs, **config)


@register_model
def van_b1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN-B1, "small" in the repository."""
    return _van("van_b1", pretrained, kwargs, **{**_B2, "depths": (2, 2, 4, 2)})


@register_model
def van_b2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN-B2, "base" in the repository."""
    return _van("van_b2", pretrained, kwargs, **_B2)


@register_model
def van_b3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN-B3, "large" in the repository."""
    return _van("van_b3", pretrained, kwargs, **{**_B2, "depths": (3, 5, 27, 3), "drop_path_rate": 0.2})


@register_model
def van_b4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN-B4."""
    return _van("van_b4", pretrained, kwargs, **{**_B2, "depths": (3, 6, 40, 3), "drop_path_rate": 0.2})


@register_model
def van_b5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN-B5."""
    return _van("van_b5", pretrained, kwargs, **_B5)


@register_model
def van_b6(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VAN-B6; its third stage is narrower than that of B5."""
    config = {"embed_dims": (96, 192, 384, 768), "depths": (6, 6, 90, 6), "drop_path_rate": 0.3}
    return _van("van_b6", pretrained, kwargs, **config)
