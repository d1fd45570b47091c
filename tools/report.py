"""`saccade report`: the classification runs in a folder, such as those of one --multirun, as a Markdown table."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine.loggers import METRICS, THROUGHPUT
from .engine.run_directory import CONFIG, ENVIRONMENT, FREE, flatten, read_config
from .errors import UserError

NONE = "-"


@dataclass(frozen=True)
class Run:
    """What a run directory says of itself."""

    settings: dict[str, Any]
    start: dict[str, Any]  # the last one's environment
    metrics: list[dict[str, str]]
    throughput: list[dict[str, str]]

    def cells(self) -> dict[str, str]:
        """The run's figures by column."""
        accuracy = [float(row.get("ema_top1") or row["top1"]) for row in self.metrics if row.get("top1")]
        epochs = [int(row["epoch"]) for row in self.metrics if row.get("top1")]
        planned = self.settings["schedule.epochs"] + self.settings["schedule.cooldown_epochs"]
        parameters = self.start.get("parameters")
        best = max(range(len(accuracy)), key=accuracy.__getitem__, default=None)
        return {
            "parameters": f"{parameters / 1e6:.3f} M" if parameters else NONE,
            "epochs": f"{len(self.metrics)}" if len(self.metrics) == planned else f"{len(self.metrics)} of {planned}",
            "last top-1": f"{accuracy[-1]:.2f} %" if accuracy else NONE,
            "best top-1 (epoch)": NONE if best is None else f"{accuracy[best]:.2f} % ({epochs[best]})",
            "training time": f"{sum(float(row['train_seconds']) for row in self.throughput):.0f} s",
        }


def read_run(path: Path) -> Run:
    """Read a run directory; what a run that failed early has not written is empty.

    Errors:
        UserError: it is no classification run.
    """
    settings = flatten(read_config(path))
    if not {"schedule.epochs", "schedule.cooldown_epochs"} <= settings.keys():
        raise UserError(f"{path} is not a classification run, of which saccade report makes tables")
    starts = json.loads((path / ENVIRONMENT).read_text()) if (path / ENVIRONMENT).is_file() else [{}]
    return Run(settings, starts[-1], _rows(path / METRICS), _rows(path / THROUGHPUT))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(runs: list[Run]) -> str:
    """Return a row for each run: the settings in which the runs differ, then its figures."""
    keys = sorted(set().union(*(run.settings for run in runs)))
    varied = [
        key for key in keys if not key.startswith(FREE) and len({str(run.settings.get(key)) for run in runs}) > 1
    ] or ["model.name"]
    rows = [{key: str(run.settings.get(key, NONE)) for key in varied} | run.cells() for run in runs]
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(run: Run) -> str:
    """Return a line on what the runs have in common."""
    machine = run.start.get("gpu") or f"CPU, threads {run.start.get('torch_threads')}"
    return (
        f"{run.start.get('recipe')}, {run.settings['model.name']}, seed {run.settings.get('seed')}, {machine}, "
        f"{str(run.start.get('time'))[:10]}; training time without evaluation"
    )


def _in_order(path: Path) -> list[Any]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def main(words: list[str]) -> None:
    if len(words) != 1:
        raise UserError("saccade report takes one folder of runs, such as a sweep's: saccade report runs/.../sweep_...")
    folder = Path(words[0])
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    paths = sorted((path.parent for path in folder.rglob(CONFIG)), key=_in_order)
    if not paths:
        raise UserError(f"{folder} holds no run: none of its folders has a {CONFIG}")
    runs = [read_run(path) for path in paths]
    print(table(runs))
    print(f"\n{about(runs[0])}")
