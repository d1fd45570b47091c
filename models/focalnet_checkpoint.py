"""Checkpoints of microsoft/FocalNet, FocalNet-DINO and timm: where they are, and how they become ours."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

GITHUB = "https://github.com/microsoft/FocalNet/releases/download/v1.0.0/"
AZURE = "https://projects4jw.blob.core.windows.net/focalnet/release/classification/"

FOREIGN_NAMES = [
    (r"^(?:visual|vision|0)\.", ""),
    (r"^(?:patch_embed|stem)\.proj\.", "stem.conv."),
    (r"^patch_embed\.", "stem."),
    (r"\.downsample\.proj\.", ".downsample.conv."),
    (r"\.modulation\.norm\.", ".modulation.ln."),
    (r"\.modulation\.", ".mixer."),
    (r"\.(norm[12])_post\.", r".\1."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^norm(\d)\.", r"out_norms.\1."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


def cfg(url: str, **kwargs: Any) -> dict[str, Any]:
    """Return a pretrained cfg with what all models of the repository have in common."""
    return imagenet_cfg(
        url,
        license="mit",
        origin_url="https://github.com/microsoft/FocalNet",
        paper_name="Focal Modulation Networks",
        paper_ids="arXiv:2203.11926",
        **kwargs,
    )


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier, detector or segmenter, of timm, or of ours, in our names.

    For a model with other focal windows, depthwise kernels are zero-padded or cropped about their centre. For one with
    more focal levels, the new gates are zero, the last gate stays that of the whole map, and the new kernels are fresh.

    Raises:
        ValueError: what is left does not fit the model.
    """
    state = unwrap(state_dict)
    # The official code and timm disagree on whether a downsampler ends a stage or begins the next.
    shift = 0 if any(key.startswith("stem.") for key in state) else 1
    stage = r"stages.\1." if hasattr(model, "stages") else ""
    rules = [
        *FOREIGN_NAMES,
        (r"^layers\.(\d+)\.downsample", lambda match: f"stages.{int(match[1]) + shift}.downsample"),
        (r"^layers\.(\d+)\.", stage),
    ]
    own = model.state_dict()
    out: dict[str, Tensor] = {}
    for key, value in rename(state, rules).items():
        out[key] = _adapt(key, value, own[key]) if key in own else value
        if key.endswith(".f.weight") and key in own and len(out[key]) > len(value):
            mixer = key.removesuffix("f.weight") + "focal_layers."
            out |= {fresh: tensor for fresh, tensor in own.items() if fresh.startswith(mixer) and fresh not in out}
    check_fit(out, model, optional=("norm.", "out_norms."))
    return out


def _adapt(key: str, value: Tensor, own: Tensor) -> Tensor:
    """Return a tensor of a checkpoint in the shape of ours, or as it is where no rule makes it so."""
    if own.dim() == 2 and value.shape[2:] == (1, 1):
        value = value.flatten(1)
    if ".focal_layers." in key and value.shape[:2] == own.shape[:2]:
        margin = (own.shape[-1] - value.shape[-1]) // 2
        return F.pad(value, (margin,) * 4)
    if re.search(r"\.f\.(weight|bias)$", key) and len(value) < len(own) and value.shape[1:] == own.shape[1:]:
        new = value.new_zeros(len(own) - len(value), *value.shape[1:])
        return torch.cat([value[:-1], new, value[-1:]])
    return value
