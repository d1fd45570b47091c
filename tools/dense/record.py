"""What a run leaves behind: rows of metrics.csv, curves, loggers, lines on the console, checkpoints; as one hook."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from timm.utils import distribute_bn

from ..engine.checkpoint import CheckpointStore
from ..engine.console import Console
from ..engine.curves import CURVES, draw_curves
from ..engine.distributed import Processes
from ..engine.loggers import METRICS, THROUGHPUT, Logger, Row, write_table
from ..engine.seeding import PROCESS, derive_seed, seed_generators
from ..errors import UserError
from .figures import PANELS, judge, name_figures, told
from .runner import Runner
from .settings import Settings

CURVES_EVERY = 60.0  # seconds between two drawings while training goes on


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    updates: int = 0
    best: float = -math.inf
    best_updates: int = 0
    metrics: list[Row] = field(default_factory=list)
    throughput: list[Row] = field(default_factory=list)


class EvaluationBar(Hook):
    """A bar for every evaluation."""

    def __init__(self, console: Console):
        self.console = console

    def before_val(self, runner: Runner) -> None:
        self.bar = self.console.bar(len(runner.val_dataloader), "evaluate")

    def before_test(self, runner: Runner) -> None:
        self.bar = self.console.bar(len(runner.test_dataloader), "evaluate")

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any, mode: str) -> None:
        if mode != "train":
            self.bar.update()

    def _after_epoch(self, runner: Runner, mode: str) -> None:
        if mode != "train":
            self.bar.close()


class Record(Hook):
    """Counts updates, which are iterations unless gradients accumulate; every figure in the files is of an update.

    mmengine's iterations draw their random numbers (drop path, sampled boxes) from the seed and their own number, so a
    continued run needs no generator's state.
    """

    priority = "VERY_LOW"  # after the learning rate's step, so that what is saved belongs together

    def __init__(
        self,
        settings: Settings,
        processes: Processes,
        console: Console,
        run: Path,
        title: str,
        progress: Progress,
        open_loggers: Callable[[int], list[Logger]],
    ):
        self.settings, self.processes, self.console = settings, processes, console
        self.run, self.title, self.progress = run, title, progress
        self.open_loggers = open_loggers
        self.store = CheckpointStore(run)
        self.loggers: list[Logger] = []
        self.sums: dict[str, torch.Tensor] = {}
        self.summed = 0

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        self.by_epoch = isinstance(loop, EpochBasedTrainLoop)
        self.steps = runner.optim_wrapper._accumulative_counts
        self.updates = loop.max_iters // self.steps
        if self.processes.main:
            self.loggers = self.open_loggers(self.progress.updates)
        self.drawn = self.began = time.monotonic()
        self.bar = self.console.bar(self.updates, "train", self.progress.updates)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        rates = runner.optim_wrapper.get_lr()
        self.lr = rates.get("base_lr", rates["lr"])[0]
        seed = derive_seed(self.settings.seed, PROCESS, self.processes.rank, runner.iter)
        seed_generators(seed)
        torch.cuda.manual_seed(seed % 2**63)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for name, value in outputs.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.summed += 1
        iteration = runner.iter + 1
        if iteration % self.steps:
            return
        self.progress.updates = iteration // self.steps
        self.bar.update()
        if self._ends_stretch(runner, iteration):
            return
        every, updates = self.settings.run.checkpoint_every, self.progress.updates
        saving = every and updates % every == 0
        if saving or updates % self.settings.run.log_every == 0:
            self._add_row()
            self._print_row()
        if saving:
            self._save(runner, iteration, runner.epoch, best=False)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and not self._evaluates(runner, runner.epoch + 1):
            self._add_row()
            self._print_row()
            self._save(runner, runner.iter, runner.epoch + 1, best=False)

    def before_val(self, runner: Runner) -> None:
        if self.processes.size > 1:
            distribute_bn(runner.plain_model, self.processes.size, reduce=True)
        self._add_row()
        self.paused = time.monotonic()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        progress = self.progress
        figures = name_figures(metrics)
        progress.metrics[-1] |= figures
        seconds = time.monotonic() - self.paused
        progress.throughput[-1]["eval_images_per_second"] = round(len(runner.val_dataloader.dataset) / seconds, 2)
        figure = judge(figures)
        best = figure > progress.best
        if best:
            progress.best, progress.best_updates = figure, progress.updates
        self._save(runner, runner.iter, runner.epoch, best)
        self._print_row()

    def after_train(self, runner: Runner) -> None:
        if self.processes.main:
            self._write_tables()
            self._draw()

    def close(self) -> None:
        """Let go of the loggers and the bar, however training ended."""
        for logger in self.loggers:
            logger.close()
        if hasattr(self, "bar"):
            self.bar.close()

    def _evaluates(self, runner: Runner, count: int) -> bool:
        loop = runner.train_loop
        last = loop.max_epochs if self.by_epoch else loop.max_iters
        return runner.val_loop is not None and (count % loop.val_interval == 0 or count == last)

    def _ends_stretch(self, runner: Runner, iteration: int) -> bool:
        """Whether an epoch ends or an evaluation comes now, which makes the row."""
        if self.by_epoch:
            return iteration % len(runner.train_dataloader) == 0
        return self._evaluates(runner, iteration)

    def _add_row(self) -> None:
        """Means since the last row, over all processes."""
        progress, names = self.progress, sorted(self.sums)
        device = self.processes.device
        sums = torch.stack([self.sums[name].to(device) for name in names])
        means = self.processes.sum(sums) / (self.summed * self.processes.size)
        losses = {f"train_{name}": value for name, value in zip(names, means.tolist(), strict=True)}
        loss = losses.pop("train_loss")
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} at update {progress.updates}: lower optimizer.lr="
                f"{self.settings.optimizer.lr:g}, clip the gradients (optimizer.clip) or use "
                f"runtime.precision=bfloat16 or float32; earlier checkpoints are kept"
            )
        row = {"updates": progress.updates, "lr": self.lr, "train_loss": loss} | losses
        progress.metrics.append({name: round(value, 6 if name != "lr" else 10) for name, value in row.items()})
        now = time.monotonic()
        images = self.summed // self.steps * self.settings.batch_size
        progress.throughput.append(
            {
                "updates": progress.updates,
                "train_seconds": round(now - self.began, 2),
                "train_images_per_second": round(images / (now - self.began), 2),
            }
        )
        self.sums, self.summed, self.began = {}, 0, now

    def _print_row(self) -> None:
        row, speed = self.progress.metrics[-1], self.progress.throughput[-1]
        figures = told(row)
        self.console.print(
            f"update {row['updates']}/{self.updates}  loss {row['train_loss']:.4f}  lr {row['lr']:.2e}  "
            f"{figures + '  ' if figures else ''}{speed['train_images_per_second']:.1f} images/s"
        )
        if self.processes.main:
            for logger in self.loggers:
                logger.log(row, speed)

    def _save(self, runner: Runner, iteration: int, epoch: int, best: bool) -> None:
        if self.processes.main:
            row = self.progress.metrics[-1]
            self.store.save(
                f"update-{self.progress.updates:06d}",
                runner.plain_model.state_dict(),
                None,
                runner.state(iteration, epoch) | {"progress": asdict(self.progress)},
                {"model": self.settings.model.name, "epoch": epoch, "update": row["updates"], "metrics": row},
                best,
            )
            self._write_tables()
            if time.monotonic() - self.drawn > CURVES_EVERY:
                self._draw()
        self.began = time.monotonic()

    def _write_tables(self) -> None:
        write_table(self.run / METRICS, self.progress.metrics)
        write_table(self.run / THROUGHPUT, self.progress.throughput)

    def _draw(self) -> None:
        draw_curves(self.run / CURVES, self.progress.metrics, self.title, PANELS, step="updates")
        self.drawn = time.monotonic()
