"""Checkpoints of ziplab/LITv2: where they are, and how they become ours."""

import re
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from .checkpoint import check_fit, unwrap

MODELS = "https://github.com/ziplab/LITv2/releases/download/v1.0/"
ALPHAS = "https://github.com/ziplab/LITv2/releases/download/v1.1/"

OFFICIAL_NAMES = [
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.", "stem."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.downsample\.dconv\.conv_offset\.", ".downsample.offset."),
    (r"\.downsample\.dconv\.", ".downsample.conv."),
    (r"\.downsample\.norm_layer\.", ".downsample.norm."),
    (r"\.attn\.", ".mixer."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"^norm(\d)\.", r"out_norms.\1."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


def cfg(url: str = "", size: int = 224, **kwargs: Any) -> dict[str, Any]:
    """Return a pretrained cfg with what all models of the repository have in common."""
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/ziplab/LITv2",
        "paper_name": "Fast Vision Transformers with HiLo Attention",
        "paper_ids": "arXiv:2205.13213",
        **kwargs,
    }


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier, detector or segmenter, or of ours, in our names.

    Raises:
        ValueError: what is left does not fit the model.
    """
    out = {}
    for key, value in unwrap(state_dict).items():
        for pattern, name in OFFICIAL_NAMES:
            key = re.sub(pattern, name, key)
        out[key] = value
    check_fit(out, model, optional=("norm.", "out_norms."))
    return out
