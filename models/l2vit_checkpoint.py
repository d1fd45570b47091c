"""Checkpoints of ChuanyangZheng/L2ViT: where they are, and how they become ours."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

RELEASE = "https://github.com/ChuanyangZheng/L2ViT/releases/download/v1.0/L2ViT-"

# The stem is a sequence of convolution, batch norm, ReLU, convolution, batch norm.
OFFICIAL_NAMES = [
    (r"^downsample_layers\.0\.proj\.proj\.0\.", "stem.convs.0."),
    (r"^downsample_layers\.0\.proj\.proj\.1\.", "stem.bns.0."),
    (r"^downsample_layers\.0\.proj\.proj\.3\.", "stem.convs.1."),
    (r"^downsample_layers\.0\.proj\.proj\.4\.", "stem.bns.1."),
    (r"^downsample_layers\.0\.norm\.", "stem.norm."),
    (r"^downsample_layers\.(\d)\.proj\.", r"stages.\1.downsample.patch.conv."),
    (r"^downsample_layers\.(\d)\.norm\.", r"stages.\1.downsample.norm."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.cpe\.0\.proj\.", ".before.conv."),
    (r"\.cpe\.1\.proj\.", ".between.conv."),
    (r"\.norm3\.", ".between.norm."),
    (r"\.local_mp\.", ".between."),
    (r"\.attn\.temperature$", ".mixer.core.temperature"),
    (r"\.attn\.", ".mixer."),
    (r"^norm(\d)\.", r"out_norms.\1."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

cfg = partial(
    imagenet_cfg,
    first_conv="stem.convs.0",
    license="mit",
    origin_url="https://github.com/ChuanyangZheng/L2ViT",
    paper_name="The Linear Attention Resurrection in Vision Transformer",
    paper_ids="arXiv:2501.16182",
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier or dense backbone, or of ours, in our names.

    Raises:
        ValueError: it does not fit the model.
    """
    state = rename(unwrap(state_dict), OFFICIAL_NAMES)
    # One number for each head, with axes of the official layout.
    state = {key: value.flatten(1) if key.endswith(".temperature") else value for key, value in state.items()}
    check_fit(state, model, optional=("norm.", "out_norms."))
    return state
