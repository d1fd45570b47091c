"""Checkpoints: directories that exist complete or not at all, with two names pointing at them, `last` and `best`.

    checkpoints/
      epoch-0012/              model.safetensors, ema.safetensors (with an average), training.pt, checkpoint.json
      last -> epoch-0012
      best -> epoch-0009

The weights files load with `timm.create_model(name, checkpoint_path=...)`; training.pt holds all else a run needs to
go on. A directory that neither name points at is deleted once the next one is in place.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import UserError
from .atomic import PARTIAL, new_directory, point, write_text
from .modeling import brief

LAST, BEST = "last", "best"
MODEL, AVERAGE, TRAINING, SUMMARY = "model.safetensors", "ema.safetensors", "training.pt", "checkpoint.json"


@dataclass
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def average(self) -> Path | None:
        return self.path / AVERAGE if (self.path / AVERAGE).exists() else None

    @property
    def best_weights(self) -> Path:
        """What to evaluate and use: the average if there is one."""
        return self.average or self.model

    def summary(self) -> dict[str, Any]:
        """Epoch, update and, at the end of an epoch, the metrics."""
        try:
            return json.loads((self.path / SUMMARY).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} is not a readable checkpoint ({brief(error)})") from error

    def training_state(self) -> dict[str, Any]:
        """What `CheckpointStore.save` was given, on the CPU."""
        file = self.path / TRAINING
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
            raise UserError(f"{file} cannot be read ({brief(error, 120)}): the checkpoint is damaged") from error


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, run: Path):
        self.directory = run / "checkpoints"

    def find(self, name: str) -> Checkpoint | None:
        """The checkpoint `last` or `best` points at."""
        path = self.directory / name
        return Checkpoint(path.resolve()) if path.is_dir() else None

    def save(
        self,
        name: str,
        model: dict[str, torch.Tensor],
        average: dict[str, torch.Tensor] | None,
        training: dict[str, Any],
        summary: dict[str, Any],
        best: bool,
    ) -> Checkpoint:
        """Write a checkpoint, make it `last` (and `best`), and delete the one it replaces."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / name
        if path.exists():  # left by a run that was killed before `last` pointed at it, or that is being repeated
            shutil.rmtree(path)
        with new_directory(path) as partial:
            save_file(_own_copies(model), partial / MODEL, metadata={"format": "pt"})
            if average is not None:
                save_file(_own_copies(average), partial / AVERAGE, metadata={"format": "pt"})
            torch.save(training, partial / TRAINING)
            write_text(partial / SUMMARY, json.dumps(summary, indent=2) + "\n")
        for pointer in [LAST, BEST] if best else [LAST]:
            point(self.directory / pointer, name)
        self.prune()
        return Checkpoint(path)

    def prune(self) -> None:
        """Delete what no name points at: replaced checkpoints and unfinished ones."""
        kept = {found.path.name for found in (self.find(LAST), self.find(BEST)) if found}
        for entry in self.directory.iterdir():
            if entry.is_symlink() and entry.name.startswith(PARTIAL):
                entry.unlink()
            elif entry.is_dir() and not entry.is_symlink() and entry.name not in kept:
                shutil.rmtree(entry)


def _own_copies(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
