"""Checkpoints of ziplab/LITv2: where they are, and how they become ours."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

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

cfg = partial(
    imagenet_cfg,
    license="apache-2.0",
    origin_url="https://github.com/ziplab/LITv2",
    paper_name="Fast Vision Transformers with HiLo Attention",
    paper_ids="arXiv:2205.13213",
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier, detector or segmenter, or of ours, in our names.

    Raises:
        ValueError: it does not fit the model.
    """
    state = rename(unwrap(state_dict), OFFICIAL_NAMES)
    check_fit(state, model, optional=("norm.", "out_norms."))
    return state
