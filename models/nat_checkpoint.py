"""Checkpoints of SHI-Labs/Neighborhood-Attention-Transformer: where they are, and how they become ours."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..layers import resize_bias_table
from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

NAT_CHECKPOINTS = "https://shi-labs.com/projects/nat/checkpoints/CLS/"
DINAT_CHECKPOINTS = "https://shi-labs.com/projects/dinat/checkpoints/"

OFFICIAL_NAMES = [
    (r"^patch_embed\.proj\.0\.", "stem.conv1."),
    (r"^patch_embed\.proj\.1\.", "stem.conv2."),
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.", "stem."),
    (r"^(?:levels|layers)\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^(?:levels|layers)\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"^layers\.", "blocks."),
    (r"(blocks\.\d+)\.attn\.", r"\1.mixer."),
    (r"(blocks\.\d+)\.gamma([12])$", r"\1.ls\2.gamma"),
    (r"^norm(\d)\.", r"out_norms.\1."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


cfg = partial(
    imagenet_cfg,
    license="mit",
    origin_url="https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
    paper_name="Neighborhood Attention Transformer",
    paper_ids="arXiv:2204.07143",
)


def dinat_cfg(path: str, **kwargs: Any) -> dict[str, Any]:
    """Return the pretrained cfg of a file of the DiNAT paper, at `path` below its checkpoints."""
    paper = {"paper_name": "Dilated Neighborhood Attention Transformer", "paper_ids": "arXiv:2209.15001"}
    return cfg(DINAT_CHECKPOINTS + path, **paper, **kwargs)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier, detector or segmenter, or of ours, in our names.

    Index buffers are dropped, and bias tables of another window or grid are resized bicubically.

    Raises:
        ValueError: what is left does not fit the model.
    """
    own = model.state_dict()
    out = {}
    for key, value in rename(unwrap(state_dict), OFFICIAL_NAMES).items():
        if key.endswith(".rpb") and key in own and value.dim() == 3 and len(value) == len(own[key]):
            value = resize_bias_table(value, own[key].shape[1:])
        if not key.endswith("relative_position_index"):
            out[key] = value
    check_fit(out, model, optional=("norm.", "out_norms."))
    return out
