"""The settings of an earlier run, under what this command line says explicitly."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from .engine.settings import Settings, read_settings
from .launch import Request


def settings_of(config: DictConfig) -> tuple[Settings, dict[str, Any]]:
    """A composed recipe, checked, and as the plain mapping that goes into a run directory."""
    settings = read_settings(config)
    return settings, OmegaConf.to_container(config, resolve=True)


def reuse(saved: dict[str, Any], request: Request, without: tuple[str, ...] = ()) -> tuple[Settings, dict[str, Any]]:
    """A run's saved settings with every explicit override of `request` applied, except keys in `without`."""
    config = OmegaConf.create(saved)
    composed = OmegaConf.to_container(request.config, resolve=False)
    for override in OverridesParser.create().parse_overrides(request.explicit):
        key = override.key_or_group.replace("/", ".")
        if key not in without:
            OmegaConf.update(config, key, OmegaConf.select(OmegaConf.create(composed), key), merge=False)
    return settings_of(config)
