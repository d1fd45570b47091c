"""The settings of an earlier run, under what this command line says explicitly."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from .dense import settings as dense
from .engine import settings as classification
from .launch import Request

AnySettings = classification.Settings | dense.Settings


def settings_of(config: DictConfig) -> tuple[AnySettings, dict[str, Any]]:
    """A composed recipe, checked, and as the plain mapping that goes into a run directory."""
    task = dense if "detector" in config or "segmentor" in config else classification
    return task.read_settings(config), OmegaConf.to_container(config, resolve=True)


def reuse(saved: dict[str, Any], request: Request, without: tuple[str, ...] = ()) -> tuple[AnySettings, dict[str, Any]]:
    """A run's saved settings with every explicit override of `request` applied, except keys in `without`."""
    config = OmegaConf.create(saved)
    composed = OmegaConf.to_container(request.config, resolve=False)
    for override in OverridesParser.create().parse_overrides(request.explicit):
        key = override.key_or_group.replace("/", ".")
        if key not in without:
            OmegaConf.update(config, key, OmegaConf.select(OmegaConf.create(composed), key), merge=False)
    return settings_of(config)
