"""Hydra between the command line and a task: the words are sorted, the recipe composed, errors told in one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError, closest
from .recipe import DEFAULT, Recipe, find_recipe

if TYPE_CHECKING:
    from omegaconf import DictConfig

NEEDED = {"hydra": "hydra-core", "matplotlib": "matplotlib", "tqdm": "tqdm"}
FLAGS_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
}
QUIET = (  # Hydra keeps to composing: no files, no log, no change of directory
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.sweep.dir=${run.root}/${hydra.job.config_name}/sweep_${now:%Y-%m-%d_%H-%M-%S}",
)


@dataclass(frozen=True)
class Request:
    """A composed recipe as a task gets it."""

    config: DictConfig
    recipe: str
    explicit: list[str]  # the overrides from the command line
    command: list[str]  # all of that line


@dataclass(frozen=True)
class Words:
    """A command line after its verb, sorted."""

    recipe: Recipe
    flags: list[str]
    overrides: list[str]


def sort_words(words: list[str]) -> Words:
    """Tell the recipe (the first plain word), Hydra's flags and the overrides apart."""
    recipe, flags, overrides = None, [], []
    rest = iter(words)
    for word in rest:
        if word.startswith("-") and "=" not in word.split()[0].lstrip("-"):
            flags.append(word)
            if word in FLAGS_WITH_VALUE:
                flags.append(next(rest, ""))
        elif word.startswith("-"):
            flags.append(word)
        elif "=" in word or word.startswith("~"):
            overrides.append(word)
        elif recipe is None:
            recipe = find_recipe(word)
        else:
            raise UserError(f"unexpected word {word!r}: after the recipe {recipe.name} write overrides as key=value")
    return Words(recipe or Recipe(DEFAULT), flags, overrides)


def check_packages() -> None:
    """Raise if a package is missing that composing or recording a run needs; called before anything imports it."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"this needs {', '.join(missing)}: pip install {' '.join(missing)} (or 'saccade[train]')")


def launch(verb: str, words: list[str], task: Callable[[Request], Any]) -> None:
    """Compose the recipe that `words` name and run `task` on it, once or, with --multirun, per combination.

    Errors:
        UserError: the recipe or an override is unknown, or the task raised one.
    """
    sorted_words = sort_words(words)

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    failures: list[UserError] = []

    def run(config: DictConfig) -> None:
        now = HydraConfig.get()
        sweeping = now.mode == RunMode.MULTIRUN
        if sweeping and config.run.dir is None:
            config.run.dir = str(Path(now.sweep.dir) / now.sweep.subdir)
        try:
            task(Request(config, now.job.config_name, list(now.overrides.task), ["saccade", verb, *words]))
        except UserError as error:
            if sweeping:
                raise
            failures.append(error)  # raised here, Hydra would add a line of its own

    recipe = sorted_words.recipe
    place = ["--config-dir", str(recipe.directory)] if recipe.directory else []
    before, os.environ["HYDRA_FULL_ERROR"] = sys.argv, "1"
    sys.argv = ["saccade", *place, *sorted_words.flags, *QUIET, *sorted_words.overrides]
    try:
        hydra.main(version_base="1.3", config_path="pkg://saccade.recipes", config_name=recipe.name)(run)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, recipe)) from error
    finally:
        sys.argv = before
    if failures:
        raise failures[0]


def _one_line(error: Exception, recipe: Recipe) -> str:
    """Hydra's many lines about a recipe or an override in one, with the keys that come close."""
    from hydra.errors import OverrideParseException

    text = str(error).split("\nConfig search path")[0].split("\nSee https://")[0]
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override!r}: {text}; write key=value, and quote what the shell would eat"
        )
    if found := re.match(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], recipe)
    if found := re.match(r"Key '([^']+)' is not in struct.*full_key: (\S+)", text, re.S):
        return _unknown_key(found[2], recipe)
    if found := re.search(
        r"(?:Could not find|In '[^']+': Could not find) '([^']+)'.*?Available options in '([^']+)':(.*)", text, re.S
    ):
        return f"unknown choice {found[1]!r}: choose {found[2]} from {', '.join(found[3].split())}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines)


def _unknown_key(key: str, recipe: Recipe) -> str:
    keys = recipe_keys(recipe)
    near = closest(key, keys)
    if not near:
        last = key.rpartition(".")[2]
        near = [name for name in keys if name.rpartition(".")[2] in closest(last, [n.rpartition(".")[2] for n in keys])]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else "--cfg job shows them all"
    return f"unknown key {key!r} in {recipe.name}: {hint}"


def recipe_keys(recipe: Recipe) -> list[str]:
    """Every key of a recipe, groups included, in dotted form."""
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig

    GlobalHydra.instance().clear()
    if recipe.directory:
        with initialize_config_dir(str(recipe.directory), version_base="1.3"):
            config = compose(recipe.name, overrides=["hydra.searchpath=[pkg://saccade.recipes]"])
    else:
        with initialize_config_module("saccade.recipes", version_base="1.3"):
            config = compose(recipe.name)

    def walk(node: DictConfig, prefix: str) -> list[str]:
        keys = []
        for name in node:
            keys.append(prefix + str(name))
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none():
                keys += walk(child, f"{prefix}{name}.")
        return keys

    return walk(config, "")
