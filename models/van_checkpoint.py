"""Checkpoints of Visual-Attention-Network/VAN-Classification: where they are, and how they become ours."""

import re
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from torch import Tensor, nn

from .checkpoint import check_fit, unwrap

HUGGING_FACE = "https://huggingface.co/Visual-Attention-Network/"
OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/van/"
FOLDER = "https://cloud.tsinghua.edu.cn/d/0100f0cea37d41ba8d08/"

# OpenMMLab's names first become the official ones.
FOREIGN_NAMES = [
    (r"^(patch_embed\d)\.projection\.", r"\1.proj."),
    (r"^blocks(\d)\.", r"block\1."),
    (r"\.DW_conv\.", ".conv0."),
    (r"\.DW_D_conv\.", ".conv_spatial."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"^patch_embed1\.proj\.", "stem.conv."),
    (r"^patch_embed1\.", "stem."),
    (r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
    (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"\.attn\.proj_1\.", ".mixer.proj_in."),
    (r"\.attn\.proj_2\.", ".mixer.proj."),
    (r"\.attn\.spatial_gating_unit\.conv0\.", ".mixer.local."),
    (r"\.attn\.spatial_gating_unit\.conv_spatial\.", ".mixer.spatial."),
    (r"\.attn\.spatial_gating_unit\.conv1\.", ".mixer.point."),
    (r"\.layer_scale_([12])$", r".ls\1.gamma"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


def cfg(url: str = "", size: int = 224, **kwargs: Any) -> dict[str, Any]:
    """Return a pretrained cfg with what the weights trained on ImageNet-1k alone have in common."""
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/Visual-Attention-Network/VAN-Classification",
        "paper_name": "Visual Attention Network",
        "paper_ids": "arXiv:2202.09741",
        **kwargs,
    }


def in22k_cfg(size: int = 224, **kwargs: Any) -> dict[str, Any]:
    """Return the pretrained cfg of weights that saw ImageNet-22k; from 384 pixels on, images are warped, uncropped."""
    crop = {"crop_pct": 1.0, "crop_mode": "squash"} if size >= 384 else {"crop_pct": 0.875}
    return cfg(size=size, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, **crop, **kwargs)


def in_folder(file: str) -> tuple[str]:
    """Return the note on a file that can be fetched by hand only."""
    return (f"fetch {file} from {FOLDER}, which has no direct links",)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier or segmenter, of OpenMMLab's classifier or of ours in our names.

    Raises:
        ValueError: what is left does not fit the model.
    """
    own = model.state_dict()
    out = {}
    for key, value in unwrap(state_dict).items():
        for pattern, name in FOREIGN_NAMES:
            key = re.sub(pattern, name, key)
        # A 1x1 convolution is a linear map of a channels-last map.
        pointwise = key in own and own[key].dim() == 2 and tuple(value.shape[2:]) == (1, 1)
        out[key] = value.flatten(1) if pointwise else value
    check_fit(out, model)
    return out
