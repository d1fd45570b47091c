"""Where a run's numbers go: CSV files always, TensorBoard and Weights & Biases when the recipe names them."""

from __future__ import annotations

import csv
import hashlib
import io
import netrc
import os
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError
from .atomic import write_text
from .settings import Loggers, TensorBoard, WandB

METRICS, THROUGHPUT = "metrics.csv", "throughput.csv"
Row = dict[str, float]


class Logger(Protocol):
    """Takes the numbers of one row of metrics.csv, which the column `step` counts."""

    def log(self, metrics: Row, throughput: Row) -> None: ...

    def close(self) -> None: ...


def write_table(path: Path, rows: list[Row]) -> None:
    """Write rows as CSV; the columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class TensorBoardLogger:
    def __init__(self, settings: TensorBoard, run: Path, done: int, step: str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("logger=tensorboard needs tensorboard: pip install 'saccade[loggers]'") from error
        self.step = step
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1, flush_secs=settings.flush_seconds)

    def log(self, metrics: Row, throughput: Row) -> None:
        for name, value in (metrics | throughput).items():
            if name != self.step:
                self.writer.add_scalar(name, value, int(metrics[self.step]))

    def close(self) -> None:
        self.writer.close()


class WandBLogger:
    """Online when there is a login, else offline (`wandb sync` uploads it later); WANDB_MODE overrides."""

    def __init__(self, settings: WandB, run: Path, recipe: str, config: dict[str, Any], step: str):
        try:
            import wandb
        except ImportError as error:
            raise UserError("logger=wandb needs wandb: pip install 'saccade[loggers]'") from error
        self.step = step
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_login() else "offline")
        self.run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            tags=settings.tags or None,
            name=f"{recipe.rpartition('/')[2]}/{run.name}",
            id=hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12],  # the same when the run is continued
            resume="allow",
            dir=str(run),
            mode=mode,
            config=config,
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: Row, throughput: Row) -> None:
        self.run.log(metrics | throughput, step=int(metrics[self.step]))

    def close(self) -> None:
        self.run.finish()


def _has_wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def open_loggers(
    settings: Loggers, run: Path, recipe: str, config: dict[str, Any], done: int, step: str = "epoch"
) -> list[Logger]:
    """The loggers the recipe names beside the CSV files; `done` is how far the column `step` has come."""
    loggers: list[Logger] = []
    if settings.tensorboard is not None:
        loggers.append(TensorBoardLogger(settings.tensorboard, run, done, step))
    if settings.wandb is not None:
        loggers.append(WandBLogger(settings.wandb, run, recipe, config, step))
    return loggers
