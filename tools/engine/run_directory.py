"""Where a run lives: a fresh directory, or the one to go on in, and the record of how it was started."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from ..errors import UserError
from .atomic import write_text
from .checkpoint import LAST, Checkpoint, CheckpointStore
from .modeling import brief

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
PACKAGES = (
    "saccade",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "safetensors",
    "hydra-core",
    "natten",
    "triton",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
)
FREE = ("run.", "runtime.", "logger.", "data.root", "data.workers", "resume", "checkpoint")  # may change on resume


def new_run(root: str, recipe: str, directory: str | None, resuming: bool = False) -> Path:
    """Choose the directory of a new run, `<root>/<recipe>/<time>` unless named; creates nothing.

    With `resuming`, a run killed before its first checkpoint may be started over in its directory.

    Errors:
        UserError: the directory named already holds a run, or is a file.
    """
    if directory is not None:
        path = Path(directory)
        if (path / CONFIG).exists() and not resuming:
            raise UserError(f"run.dir={directory} already holds a run: add resume=auto to go on, or choose another")
        if path.exists() and not path.is_dir():
            raise UserError(f"run.dir={directory} is not a directory")
        return path
    base = Path(root) / recipe
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path, again = base / stamp, 1
    while path.exists():
        again += 1
        path = base / f"{stamp}_{again}"
    return path


def newest_run(root: str, recipe: str) -> Path | None:
    """The newest run of this recipe that has a checkpoint."""
    base = Path(root) / recipe
    runs = [path for path in base.glob("*/") if (path / CONFIG).exists() and CheckpointStore(path).find(LAST)]
    return max(runs, key=lambda path: (path / CONFIG).stat().st_mtime, default=None)


def find_resumed(resume: str, root: str, recipe: str, directory: str | None) -> tuple[Path, Checkpoint] | None:
    """The run and checkpoint to go on from, or None where `resume=auto` finds nothing to go on from.

    `resume` is `auto` (the run in `directory`, else the newest of the recipe), a run directory or one of its
    checkpoints.

    Errors:
        UserError: `resume` is neither, or names another run than `directory`.
    """
    if resume == "auto":
        path = Path(directory) if directory is not None else newest_run(root, recipe)
        checkpoint = CheckpointStore(path).find(LAST) if path is not None else None
        return (path, checkpoint) if checkpoint else None
    path = Path(resume)
    if not path.is_dir():
        raise UserError(f"resume={resume}: no such directory; give a run directory or auto")
    run, checkpoint = locate(path)
    if run is None or checkpoint is None:
        raise UserError(
            f"resume={resume} holds no complete checkpoint: give a run directory, such as {root}/{recipe}/..."
        )
    if directory is not None and Path(directory).resolve() != run.resolve():
        raise UserError(f"resume={resume} goes on in that run's own directory: drop run.dir={directory}")
    return run, checkpoint


def locate(path: Path, name: str = LAST) -> tuple[Path | None, Checkpoint | None]:
    """The run, and the checkpoint `name` of it, that a path into a run directory means.

    The path may be the run directory, one of its checkpoints, or a weights file in one.
    """
    if (path / CONFIG).exists():
        return path, CheckpointStore(path).find(name)
    inner = path if path.is_dir() else path.parent
    run = inner.resolve().parent.parent
    if inner.resolve().parent.name == "checkpoints" and (run / CONFIG).exists():
        return run, Checkpoint(inner.resolve())
    return None, None


def read_config(run: Path) -> dict[str, Any]:
    """The resolved settings a run was started with."""
    try:
        config = yaml.safe_load((run / CONFIG).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{run / CONFIG} cannot be read ({brief(error)})") from error
    if not isinstance(config, dict):
        raise UserError(f"{run / CONFIG} is not a run's configuration")
    return config


def recipe_of(run: Path) -> str | None:
    """The recipe a run was started with, which a command that goes on with it need not name; None if unrecorded."""
    try:
        return json.loads((run / ENVIRONMENT).read_text())[0]["recipe"]
    except (OSError, ValueError, LookupError):
        return None


def check_unchanged(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise if a continued run is asked for something that would make it another run."""
    old, new = flatten(before), flatten(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not key.startswith(FREE):
            raise UserError(
                f"cannot resume {run} with {key}={new.get(key)}: it was started with {old.get(key)}; "
                "start a new run to change it"
            )


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Settings in one level, by dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, _join(prefix, name)).items()}


def _join(prefix: str, name: Any) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


@dataclass(frozen=True)
class Start:
    """What a run was started with."""

    recipe: str
    command: list[str]


def record_start(
    run: Path, start: Start, config: dict[str, Any], model: torch.nn.Module, processes: int, resumed: Checkpoint | None
) -> None:
    """Create the run directory with its resolved configuration, and add this start to the record of environments."""
    run.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_text(run / CONFIG, f"# The resolved settings of a run of {start.recipe}.\n{text}")
    record = run / ENVIRONMENT
    starts = json.loads(record.read_text()) if record.exists() else []
    starts.append(
        {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": start.command,
            "recipe": start.recipe,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "resumed_from": str(resumed.path) if resumed else None,
            "git_revision": _git_revision(),
            "processes": processes,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "cuda": torch.version.cuda,
            "packages": {name: version for name in PACKAGES if (version := _version(name))},
        }
    )
    write_text(record, json.dumps(starts, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The revision saccade's own sources are at, with a mark if they were changed, where they are a checkout."""
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
