"""Checkpoints of hustvl/ViG: where they are, and how they become ours."""

import math
from functools import partial
from typing import Any

from torch import Tensor, nn

from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

HUB = "https://huggingface.co/hustvl/ViG/resolve/main/"
TABLE = "stem.position.table"

# Both stems are a sequence of convolution, norm, activation, convolution, norm; with places between them in ViG-H's.
OFFICIAL_NAMES = [
    (r"^patch_embed\.(?:proj\.)?0\.", "stem.first.conv."),
    (r"^patch_embed\.(?:proj\.1|2)\.", "stem.first.norm."),
    (r"^patch_embed\.(?:proj\.3|5)\.", "stem.second.conv."),
    (r"^patch_embed\.(?:proj\.4|7)\.", "stem.second.norm."),
    (r"^layers\.(\d+)\.downsample\.1\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.conv."),
    (r"^layers\.(\d+)\.downsample\.3\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.(?:norm|ln_1)\.", r"stages.\1.blocks.\2.norm1."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.attn_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.(?:attn|op|self_attention)\.", ".mixer."),
    (r"\.mixer\.in_proj\.0\.", ".mixer.conv."),
    (r"\.mixer\.qkv_proj\.", ".mixer.qkv."),
    (r"\.mixer\.gk_proj\.", ".mixer.memory."),
    (r"\.mixer\.g_proj\.", ".mixer.gate."),
    (r"\.mixer\.o_proj\.", ".mixer.proj."),
    (r"\.mixer\.g_norm\.", ".mixer.norm."),
    (r"\.mixer\.l_norm\.", ".mixer.local_norm."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^classifier\.norm\.", "norm."),
    (r"^(?:classifier\.)?head\.(weight|bias)$", r"head.fc.\1"),
    (r"^classifier\.head\.", "head.fc."),
]

_imagenet_cfg = partial(
    imagenet_cfg,
    first_conv="stem.first.conv",
    origin_url="https://github.com/hustvl/ViG",
    paper_name="ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
    paper_ids="arXiv:2405.18425",
)


def cfg(file: str = "", sha256: str = "", **kwargs: Any) -> dict[str, Any]:
    """Return a timm pretrained cfg; the repository is under MIT, its weights' card says Apache-2.0."""
    if not file:
        return _imagenet_cfg(license="mit", **kwargs)
    return _imagenet_cfg(HUB + file, license="apache-2.0", notes=(f"sha256 of the file: {sha256}",), **kwargs)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official ViG or ViG-H, or of ours, in our names.

    The positions of images of another size are resampled.

    Raises:
        ValueError: it does not fit the model, or its positions are not of a square map.
    """
    state = unwrap(state_dict)
    if (codes := state.pop("pos_embed", None)) is not None:
        side = math.isqrt(codes.shape[1])
        if side**2 != codes.shape[1]:
            raise ValueError(f"pos_embed has shape {list(codes.shape)}; valid: [1, N, C], N the tokens of a square map")
        state[TABLE] = codes[0].unflatten(0, (side, side))
    state = rename(state, OFFICIAL_NAMES)
    table, own = state.get(TABLE), model.state_dict().get(TABLE)
    if table is not None and own is not None and table.shape[-1] == own.shape[-1]:
        state[TABLE] = model.stem.position.resized("table", table)
    check_fit(state, model, optional=("norm.", "out_norms."))
    return state
