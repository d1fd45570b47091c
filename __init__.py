"""saccade: vision backbones whose token mixers are not plain softmax attention, registered with timm on import."""

from importlib import import_module
from typing import Any

import timm

from . import models
from .kernels.dispatch import backend, explain

__version__ = "0.1.0"
__all__ = ["accelerate", "backend", "explain", "list_models", "restore"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: it reads the measured gains, which most programs do not ask for.
    if name in ("accelerate", "restore"):
        return getattr(import_module(".models.accelerate", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def list_models(filter: str | list[str] = "", **kwargs: Any) -> list[str]:
    """Return the names of saccade's models; arguments as for `timm.list_models`: `filter`, `pretrained` and so on."""
    ours = f"{__name__}.models."
    names = timm.list_models(filter, **kwargs)
    return [name for name in names if timm.model_entrypoint(name.split(".")[0]).__module__.startswith(ours)]
