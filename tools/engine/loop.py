"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import distribute_bn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .checkpoint import Checkpoint, CheckpointStore
from .compilation import compiled
from .console import Console
from .curves import CURVES, draw_curves
from .datasets import check_same_classes, open_images
from .distributed import Processes
from .evaluation import evaluate
from .loading import evaluation_loader, training_loader
from .loggers import METRICS, THROUGHPUT, Row, open_loggers, write_table
from .modeling import create_model, data_config, lay_channels_last, load_weights
from .optimizer import create_average, create_optimizer
from .precision import Stepper, autocast
from .run_directory import Start, record_start
from .schedule import BaseRate
from .seeding import generator_states, restore_generators, seed_everything
from .settings import Settings

CURVES_EVERY = 60.0  # seconds between two drawings while training goes on


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    epoch: int = 0  # finished epochs
    update: int = 0  # finished updates of the epoch in progress
    best: float = -1.0
    best_epoch: int = 0
    metrics: list[Row] = field(default_factory=list)
    throughput: list[Row] = field(default_factory=list)


class Trainer:
    """One run: builds its parts from the settings, trains, and keeps the run directory up to date.

    Nothing is written before `train`, so whatever is wrong with the settings leaves no trace on disk.
    """

    def __init__(self, settings: Settings, processes: Processes, console: Console):
        self.settings, self.processes, self.console = settings, processes, console
        self.device, runtime = processes.device, settings.runtime
        seed_everything(settings.seed, 0, runtime.deterministic)  # every process makes the same model

        training, held_out = open_images(settings.data, True), open_images(settings.data, False)
        check_same_classes(training, held_out)
        classes = settings.model.num_classes or len(training.classes)
        if classes < len(training.classes):
            raise UserError(f"model.num_classes={classes} is fewer than the data's {len(training.classes)} classes")

        self.model = create_model(settings.model, classes).to(self.device)
        if runtime.channels_last:
            lay_channels_last(self.model)
        config = data_config(settings.data, self.model)
        self.loader = training_loader(settings, training, config, classes, processes)
        self.batches = self.loader.batches
        self.held_out = evaluation_loader(settings, held_out, config, processes)
        self.plan, self.updates = self.batches.plan, self.batches.updates

        self.optimizer = create_optimizer(settings.optimizer, self.model)
        self.rate = BaseRate(settings.schedule, self.optimizer, settings.optimizer.lr, self.updates)
        self.stepper = Stepper(settings.optimizer, runtime.precision, self.model, self.optimizer, self.device)
        self.average = create_average(settings.optimizer, self.model)
        self.parallel = self.model
        if processes.size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True)
        self.forward = compiled(self.parallel) if runtime.compile else self.parallel
        evaluated = {"": self.model} | ({"ema_": self.average.module} if self.average else {})
        self.evaluated = {
            prefix: (model, compiled(model) if runtime.compile else model) for prefix, model in evaluated.items()
        }

        self.smoothing = 0.0 if self.loader.augmentation.mix else settings.augment.label_smoothing
        self.progress = Progress()
        self.losses = torch.zeros((), dtype=torch.float64, device=self.device)  # summed over the epoch's micro-batches
        seed_everything(settings.seed, processes.rank, runtime.deterministic)
        self.generators = generator_states(self.device)

    def describe(self) -> str:
        """One line on what will be trained."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        plan = self.plan
        return (
            f"{self.settings.model.name}: {parameters / 1e6:.2f} M parameters; {self.batches.images} training and "
            f"{len(self.held_out.loader.dataset)} held-out images; batch {plan.total} = {plan.processes} processes x "
            f"{plan.accumulation} steps x {plan.micro}; {self.rate.epochs} epochs of {self.updates} updates"
        )

    def result(self) -> str:
        """What the best checkpoint reached."""
        progress = self.progress
        return f"best: top-1 {progress.best:.2f} % in epoch {progress.best_epoch} of {progress.epoch}"

    def train(self, run: Path, start: Start, config: dict[str, Any], resumed: Checkpoint | None) -> None:
        """Train to the last epoch; `config` is what goes into the run directory as its settings."""
        if resumed is not None:
            self.restore(resumed)
        self.store = CheckpointStore(run)
        self.run, self.recipe = run, start.recipe
        self.loggers = []
        if self.processes.main:
            record_start(run, start, config, self.model, self.processes.size, resumed)
            self.loggers = open_loggers(self.settings.logger, run, start.recipe, config, self.progress.epoch)
            self.console.keep(run / "log.txt")
        self.console.print(self.describe())
        self.drawn = time.monotonic()
        restore_generators(self.generators, self.device)
        try:
            while self.progress.epoch < self.rate.epochs:
                metrics, throughput = self.train_epoch()
                self.finish_epoch(metrics, throughput)
            if self.processes.main:
                self.write_tables()
                self.draw()
        finally:
            for logger in self.loggers:
                logger.close()

    def train_epoch(self) -> tuple[Row, Row]:
        """The rest of the current epoch."""
        progress, plan, run = self.progress, self.plan, self.settings.run
        name = f"epoch {progress.epoch + 1}/{self.rate.epochs}"
        self.batches.start(progress.epoch, progress.update)
        self.parallel.train()
        first, began, paused = progress.update, time.perf_counter(), 0.0
        micro_batches = iter(self.loader)
        for update in self.console.progress(range(first, self.updates), self.updates, name, first):
            for step in range(plan.accumulation):
                self.accumulate(*next(micro_batches), synchronize=step == plan.accumulation - 1)
            self.stepper.step()
            progress.update = update + 1
            finished = progress.epoch * self.updates + progress.update
            if self.average is not None:
                self.average.update(self.model, step=finished)
            lr = self.rate.lr
            self.rate.step(finished)

            if progress.update == self.updates:
                break
            if progress.update % run.log_every == 0:
                speed = (progress.update - first) * plan.total / (time.perf_counter() - began - paused)
                loss = self.mean_loss()
                place = f"{name}  update {progress.update}/{self.updates}"
                self.console.print(f"{place}  loss {loss:.4f}  lr {lr:.2e}  {speed:.0f} images/s")
            if run.checkpoint_every and finished % run.checkpoint_every == 0:
                saving = time.perf_counter()
                self.mean_loss()  # rather stop than save weights that are not numbers
                self.save(f"epoch-{progress.epoch:04d}-update-{progress.update:06d}", {}, best=False)
                paused += time.perf_counter() - saving

        loss, seconds = self.mean_loss(), time.perf_counter() - began - paused
        epoch = progress.epoch + 1
        metrics = {"epoch": epoch, "updates": epoch * self.updates, "lr": lr, "train_loss": loss}
        speed = (self.updates - first) * plan.total / seconds
        return metrics, {"epoch": epoch, "train_seconds": seconds, "train_images_per_second": speed}

    def accumulate(self, images: torch.Tensor, targets: torch.Tensor, synchronize: bool) -> None:
        """Add one micro-batch's gradient; the processes' gradients are averaged on the last one only."""
        settings = self.settings
        if settings.runtime.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        alone = synchronize or self.processes.size == 1
        with contextlib.nullcontext() if alone else self.parallel.no_sync():
            with autocast(settings.runtime.precision, self.device):
                logits = self.forward(images)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.smoothing)
            self.stepper.backward(loss / self.plan.accumulation)
        self.losses += loss.detach()

    def mean_loss(self) -> float:
        """The epoch's mean training loss so far, over all processes; raises when it is not a number."""
        losses = self.processes.sum(self.losses.clone()).item()
        loss = losses / (self.progress.update * self.plan.accumulation * self.plan.processes)
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} in epoch {self.progress.epoch + 1}, update {self.progress.update}: lower "
                f"optimizer.lr={self.settings.optimizer.lr:g}, clip the gradients (optimizer.clip) or use "
                f"runtime.precision=bfloat16 or float32; earlier checkpoints are kept"
            )
        return loss

    def finish_epoch(self, metrics: Row, throughput: Row) -> None:
        """Evaluate, record, save."""
        progress = self.progress
        progress.epoch, progress.update = progress.epoch + 1, 0
        self.losses.zero_()
        last = progress.epoch == self.rate.epochs
        best = False
        if last or progress.epoch % self.settings.run.evaluate_every == 0:
            results = self.evaluate()
            metrics |= {name: value for name, value in results.items() if name.endswith(("top1", "top5", "loss"))}
            throughput["eval_images_per_second"] = results["images_per_second"]
            accuracy = results["top1" if self.average is None else "ema_top1"]
            if accuracy > progress.best:
                best, progress.best, progress.best_epoch = True, accuracy, progress.epoch
        metrics = {name: round(value, 6) for name, value in metrics.items()}
        progress.metrics.append(metrics)
        progress.throughput.append({name: round(value, 2) for name, value in throughput.items()})

        self.save(f"epoch-{progress.epoch:04d}", metrics, best)
        if self.processes.main:
            self.write_tables()
            for logger in self.loggers:
                logger.log(metrics, throughput)
            if time.monotonic() - self.drawn > CURVES_EVERY:
                self.draw()
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in metrics if name not in ("epoch", "updates", "lr"))
        self.console.print(
            f"epoch {progress.epoch}/{self.rate.epochs}  {shown}  lr {metrics['lr']:.2e}  "
            f"{throughput['train_images_per_second']:.0f} images/s"
        )

    def evaluate(self) -> Row:
        """Accuracy and loss of the weights, and of their average (`ema_...`)."""
        runtime = self.settings.runtime
        results: Row = {}
        for prefix, (model, forward) in self.evaluated.items():
            if self.processes.size > 1:
                distribute_bn(model, self.processes.size, reduce=True)
            model.eval()
            found = evaluate(
                forward, self.held_out, self.processes, self.console, runtime.precision, runtime.channels_last
            )
            results |= {prefix + name: value for name, value in found.items()}
        return results

    def save(self, name: str, metrics: Row, best: bool) -> None:
        """Write a checkpoint from which `restore` continues bit for bit."""
        mine = {"generators": generator_states(self.device), "losses": self.losses.item()}
        each = self.processes.gather(mine)
        if not self.processes.main:
            return
        training = {
            "progress": asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.rate.state_dict(),
            "scaler": self.stepper.state_dict(),
            "processes": each,
            "images": self.batches.images,
        }
        summary = {"model": self.settings.model.name, "epoch": self.progress.epoch, "update": self.progress.update}
        average = self.average.module.state_dict() if self.average is not None else None
        self.store.save(name, self.model.state_dict(), average, training, summary | {"metrics": metrics}, best)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up everything a checkpoint saved."""
        training = checkpoint.training_state()
        if training["images"] != self.batches.images:
            raise UserError(
                f"cannot resume {checkpoint.path}: it was trained on {training['images']} images, data.root now holds "
                f"{self.batches.images}"
            )
        load_weights(self.model, checkpoint.model)
        if self.average is not None:
            if checkpoint.average is None:
                raise UserError(f"cannot resume {checkpoint.path}: it lacks the averaged weights")
            load_weights(self.average.module, checkpoint.average)
        self.optimizer.load_state_dict(training["optimizer"])
        self.rate.load_state_dict(training["schedule"])
        self.stepper.load_state_dict(training["scaler"])
        self.progress = Progress(**training["progress"])
        each = training["processes"]
        if len(each) == self.processes.size:
            self.generators = each[self.processes.rank]["generators"]
            self.losses.fill_(each[self.processes.rank]["losses"])
        else:
            self.losses.fill_(sum(process["losses"] for process in each) / self.processes.size)
            self.console.print(
                f"{self.processes.size} processes go on where {len(each)} were: drop path and dropout draw new numbers"
            )
        self.console.print(f"resumed from {checkpoint.path}")

    def write_tables(self) -> None:
        write_table(self.run / METRICS, self.progress.metrics)
        write_table(self.run / THROUGHPUT, self.progress.throughput)

    def draw(self) -> None:
        draw_curves(self.run / CURVES, self.progress.metrics, f"{self.recipe}: {self.settings.model.name}")
        self.drawn = time.monotonic()
