"""What FLatten, Agent and InLine share, all of LeapLabTHU: their cfgs, and how their checkpoints become ours."""

import math
import re
from typing import Any

from timm.models import resolve_pretrained_cfg
from torch import Tensor, nn

from .backbone import Backbone, build_backbone
from .checkpoint import check_fit, imagenet_cfg, rename, unwrap
from .share_link import fetch, is_share_link

SHARE = "https://cloud.tsinghua.edu.cn/f/{}/?dl=1"

# The mixers' names; a host brings those of its body as `official_names`.
MIXER_NAMES = [
    (r"\.attn\.(qkv|q|kv|sr|norm|proj)\.", r".mixer.\1."),
    (r"\.attn\.", ".mixer.core."),
]
# What the official models derive from their configuration and save all the same.
DERIVED = re.compile(r"\.(?:relative_position_index|relative_coords_table|attn_mask)$")


def cfg(repository: str, file: str = "", size: int = 224, **kwargs: Any) -> dict[str, Any]:
    """Return the pretrained cfg of a model of one of the repositories.

    Args:
        repository: its name at github.com/LeapLabTHU.
        file: identifier of the released file at the university's file share, empty where there is none.
        kwargs: what differs, e.g. `crop_pct=1.0` for models that are evaluated on uncropped images.
    """
    origin = f"https://github.com/LeapLabTHU/{repository}"
    unreleased = f"{origin} has released none; the recipe of this name makes them"
    return imagenet_cfg(
        size=size,
        # The official evaluation warps the image to a square, of which it takes the centre.
        crop_mode="squash",
        license="none stated",
        origin_url=origin,
        **{**({"url": SHARE.format(file)} if file else {"notes": (unreleased,)}), **kwargs},
    )


def build(cls: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    """Build a registered model on the host `cls` from its configuration and what the caller of timm overrides.

    Raises:
        RuntimeError: the released file cannot be downloaded; the message says how to get and load it by hand.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    found = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    if pretrained and is_share_link(found.url) and not (found.file or found.state_dict):
        kwargs = {**kwargs, "pretrained_cfg_overlay": {**overlay, "file": fetch(found.url, variant)}}
    return build_backbone(cls, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier or dense backbone, or of ours, in our names.

    What the model does not use is dropped: buffers that are derived, and the norm before the head of FLatten's PVT,
    which the official code does not call. Tables of positions made for images of another size are resampled as the
    modules that own them do it.

    Raises:
        ValueError: what is left does not fit the model.
    """
    own = model.state_dict()
    modules = dict(model.named_modules())
    state = {key: value for key, value in unwrap(state_dict).items() if not DERIVED.search(key)}
    out = {}
    for key, value in rename(_position_maps(state, own), [*model.official_names, *MIXER_NAMES]).items():
        owner, _, leaf = key.rpartition(".")
        if key in own and value.shape != own[key].shape and hasattr(modules[owner], "resized"):
            value = modules[owner].resized(leaf, value)
        if not (owner == "norm" and isinstance(model.norm, nn.Identity)):
            out[key] = value
    check_fit(out, model, optional=("norm.", "out_norms."))
    return out


def _position_maps(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split a class token's position off, and give the tables of tokens [1, N, C] the shape of square maps."""
    out = {}
    for key, value in state.items():
        if re.fullmatch(r"pos_embed\d?", key):
            if "cls_position" in own:
                out["cls_position"], value = value[:, :1], value[:, 1:]
            side = math.isqrt(value.shape[1])
            value = value[0].unflatten(0, (side, side)) if side**2 == value.shape[1] else value
        out[key] = value
    return out
