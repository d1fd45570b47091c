"""Checkpoints of zhouyuan888888/CARE-Transformer: where they are, and how they become ours."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

DRIVE = "https://drive.google.com/drive/folders/1UGRHQKjBGY8EjUtsHLsy9VBXp7rfUqkf"

# The stem is a sequence of convolution and batch norm, a downsampler one of batch norm and convolution.
OFFICIAL_NAMES = [
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.norm."),
    (r"\.downsample\.0\.", ".downsample.norm."),
    (r"\.downsample\.1\.", ".downsample.patch.conv."),
    (r"(\.blocks\.\d+)\.gamma$", r"\1.ls1.gamma"),
    (r"\.token_mixer\.dwconvatt_([12])\.", lambda m: f".mixer.strips.{int(m[1]) - 1}."),
    (r"\.token_mixer\.dwconv([12])\.", lambda m: f".mixer.local.{int(m[1]) - 1}."),
    (r"\.token_mixer\.qk\.", ".mixer.qk."),
    (r"\.inter_layer\.inter1_", ".mixer.inner."),
    (r"\.inter_layer\.inter2_", ".mixer.outer."),
    (r"(\.mixer\.(?:inner|outer))\.conv\.", r"\1.dwconv."),
    (r"^dist_head\.", "head_dist."),
]


cfg = partial(
    imagenet_cfg,
    classifier=("head.fc", "head_dist.fc"),
    license="none stated",
    origin_url="https://github.com/zhouyuan888888/CARE-Transformer",
    paper_name="CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual Interaction",
    paper_ids="arXiv:2411.16170",
)
released_cfg = partial(cfg, notes=(f"fetch the file of this size from {DRIVE}, which has no direct links",))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier, or of ours, in our names.

    Raises:
        ValueError: it does not fit the model.
    """
    state = rename(unwrap(state_dict), OFFICIAL_NAMES)
    own = model.state_dict()
    # A 1x1 convolution there is a linear layer here.
    state = {
        key: x.flatten(1) if x.dim() == 4 and key in own and own[key].dim() == 2 else x for key, x in state.items()
    }
    check_fit(state, model, optional=("out_norms.", "head.norm.", "head_dist.norm."))
    return state
