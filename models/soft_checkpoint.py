"""Checkpoints of fudan-zvg/SOFT: where they are, and how they become ours."""

import math
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

DRIVE = "https://drive.google.com/file/d/{}/view"
ORIGIN = "https://github.com/fudan-zvg/SOFT"

# Each stage's patch embedding is a sequence of convolution, batch norm, ReLU.
OFFICIAL_NAMES = [
    (r"^patch_embed1\.proj\.([036])\.", lambda m: f"stem.convs.{int(m[1]) // 3}."),
    (r"^patch_embed1\.proj\.([147])\.", lambda m: f"stem.bns.{int(m[1]) // 3}."),
    (r"^patch_embed(\d)\.proj\.0\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.convs.0."),
    (r"^patch_embed(\d)\.proj\.1\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.bns.0."),
    (r"^pos_embed(\d)$", lambda m: f"stages.{int(m[1]) - 1}.position.table"),
    (r"^cls_(token|position)$", r"stages.3.position.cls_\1"),
    (r"^block(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"\.att\.mha\.attn\.Qlandmark_op\.", ".mixer.landmark."),
    (r"\.att\.mha\.attn\.Qnorm_act\.0\.", ".mixer.norm."),
    (r"\.att\.mha\.attn\.conv\.", ".mixer.local."),
    (r"\.att\.mha\.W_([qv])\.", r".mixer.\1."),
    (r"\.att\.mha\.ff\.", ".mixer.proj."),
    (r"\.att\.ff([12])\.", r".mlp.fc\1."),
    (r"\.att\.norm([12])\.", r".norm\1."),
    (r"\.attn\.", ".mixer."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


def cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    """Return a pretrained cfg; `file` is the identifier of a file whose page has no direct link, empty for none."""
    page = f"fetch the file from {DRIVE.format(file)}, which is no direct link"
    none = f"{ORIGIN} has released none; the recipe of this name makes them"
    settings = {
        "notes": (page if file else none,),
        "first_conv": "stem.convs.0",
        "license": "mit",
        "origin_url": ORIGIN,
        "paper_name": "SOFT: Softmax-free Transformer with Linear Complexity",
        "paper_ids": "arXiv:2110.11945",
    }
    return imagenet_cfg(**{**settings, **kwargs})


plus_cfg = partial(cfg, paper_name="Softmax-free Linear Transformers", paper_ids="arXiv:2207.03341")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier or dense backbone, or of ours, in our names.

    Tables of positions made for images of another size are resampled.

    Raises:
        ValueError: it does not fit the model.
    """
    modules = dict(model.named_modules())
    state = rename(_joined(_maps(unwrap(state_dict))), OFFICIAL_NAMES)
    for key in [key for key in state if key.endswith(".position.table")]:
        owner, leaf = key.rsplit(".", 1)
        if owner in modules:
            state[key] = modules[owner].resized(leaf, state[key])
    check_fit(state, model, optional=("norm.", "out_norms."))
    return state


def _maps(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tables of tokens [1, N, C] the shape of square maps, the class token's split off."""
    out = {}
    for key, value in state.items():
        if re.fullmatch(r"pos_embed\d", key):
            if key == "pos_embed4":
                out["cls_position"], value = value[:, :1], value[:, 1:]
            side = math.isqrt(value.shape[1])
            value = value[0].unflatten(0, (side, side))
        out[key] = value
    return out


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections of queries and of keys and values, which are one of ours."""
    out = {}
    for key, value in state.items():
        if ".attn.kv." in key:
            continue
        if ".attn.q." in key:
            key, value = key.replace(".q.", ".qkv."), torch.cat((value, state[key.replace(".q.", ".kv.")]))
        out[key] = value
    return out
