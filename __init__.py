"""saccade: vision backbones whose token mixers are not plain softmax attention, registered with timm on import."""

from typing import Any

import timm

from . import models
from .kernels.dispatch import backend, explain

__version__ = "0.1.0"
__all__ = ["backend", "explain", "list_models"]


def list_models(filter: str | list[str] = "", **kwargs: Any) -> list[str]:
    """Return the names of saccade's models; arguments as for `timm.list_models`: `filter`, `pretrained` and so on."""
    ours = f"{__name__}.models."
    names = timm.list_models(filter, **kwargs)
    return [name for name in names if timm.model_entrypoint(name.split(".")[0]).__module__.startswith(ours)]
