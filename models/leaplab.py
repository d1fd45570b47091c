"""What FLatten, Agent and InLine share, all of LeapLabTHU: their cfgs, and how their checkpoints become ours."""

from typing import Any

from torch import Tensor, nn

from .backbone import Backbone, build_backbone
from .checkpoint import check_fit, imagenet_cfg, rename, unwrap

SHARE = "https://cloud.tsinghua.edu.cn/f/{}/?dl=1"

# The mixers' names; a host brings those of its body as `official_names`.
MIXER_NAMES = [(r"\.attn\.", ".mixer.")]

UNRELEASED = ("its weights were never released; the recipe of this name makes them",)


def cfg(repository: str, file: str = "", size: int = 224, **kwargs: Any) -> dict[str, Any]:
    """Return the pretrained cfg of a model of one of the repositories.

    Args:
        repository: its name at github.com/LeapLabTHU.
        file: identifier of the released file at the university's file share, empty where there is none.
        kwargs: what differs, e.g. `crop_pct=1.0` for models that are evaluated on uncropped images.
    """
    found = {"url": SHARE.format(file)} if file else {"notes": UNRELEASED}
    return imagenet_cfg(
        size=size,
        # The official evaluation warps the image to a square, of which it takes the centre.
        crop_mode="squash",
        license="none stated",
        origin_url=f"https://github.com/LeapLabTHU/{repository}",
        **{**found, **kwargs},
    )


def build(cls: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **config: Any) -> nn.Module:
    """Build a registered model on the host `cls` from its configuration and what the caller of timm overrides."""
    return build_backbone(cls, variant, pretrained, checkpoint_filter_fn, **{**config, **kwargs})


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an official classifier or dense backbone, or of ours, in our names.

    Raises:
        ValueError: what is left does not fit the model.
    """
    state = rename(unwrap(state_dict), [*model.official_names, *MIXER_NAMES])
    check_fit(state, model, optional=("norm.", "out_norms."))
    return state
