"""`saccade evaluate`: figures of a run's best weights, of a weights file, or of released weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from .dense.figures import told
from .dense.run import evaluate as measure_dense
from .engine.checkpoint import AVERAGE, BEST, LAST
from .engine.compilation import compiled
from .engine.console import Console
from .engine.datasets import open_images
from .engine.distributed import Processes, connect
from .engine.evaluation import evaluate as measure
from .engine.loading import evaluation_loader
from .engine.modeling import create_model, data_config, lay_channels_last, load_weights
from .engine.run_directory import locate, newest_run, read_config
from .engine.settings import Settings
from .errors import UserError
from .launch import Request, launch
from .saved_settings import AnySettings, reuse, settings_of


def main(words: list[str]) -> None:
    launch("evaluate", words, evaluate)


def evaluate(request: Request) -> dict[str, float]:
    """Evaluate what the request names; prints and returns the figures."""
    settings, _ = settings_of(request.config)
    # The device is the run's own; which of its checkpoints is evaluated, one process then says for all.
    with connect(choose(settings, request)[0].runtime.device) as processes:
        console = Console(processes.main)
        settings, weights, recorded = processes.from_main(lambda: choose(settings, request))
        if settings.runtime.threads is not None:
            torch.set_num_threads(settings.runtime.threads)
        measured = measure_classifier if isinstance(settings, Settings) else measure_dense
        figures = measured(settings, weights, processes, console)
        console.print(f"weights: {weights or settings.model.weights or 'released weights'}")
        if recorded:
            console.print(f"recorded in training: {recorded}")
        return figures


def measure_classifier(
    settings: Settings, weights: Path | None, processes: Processes, console: Console
) -> dict[str, float]:
    """Measure a classifier on a recipe's evaluation images; prints and returns the figures."""
    images = open_images(settings.data, training=False)
    released = settings.model.pretrained
    classes = settings.model.num_classes or (None if released else len(images.classes))
    architecture = replace(settings.model, weights_classes=settings.model.weights_classes or classes)
    model = create_model(architecture, classes)
    collection, here = settings.data.root or settings.data.kind, len(images.classes)
    if model.num_classes < here or (model.num_classes > here and settings.model.num_classes is None):
        raise UserError(
            f"{settings.model.name} tells {model.num_classes} classes apart, {collection} has {here}: evaluate on "
            "the data set these weights were made for"
        )
    if weights is not None:
        load_weights(model, weights)
    model.to(processes.device).eval()
    if settings.runtime.channels_last:
        lay_channels_last(model)
    config = data_config(settings.data, model, test_size=released)
    loader = evaluation_loader(settings, images, config, processes)
    forward = compiled(model) if settings.runtime.compile else model
    figures = measure(forward, loader, processes, console, settings.runtime.precision, settings.runtime.channels_last)
    size = "x".join(map(str, config["input_size"][1:]))
    console.print(
        f"{settings.model.name} at {size} on {figures['images']} images of {collection}: "
        f"top-1 {figures['top1']:.2f}  top-5 {figures['top5']:.2f}  loss {figures['loss']:.4f}  "
        f"{figures['images_per_second']:.0f} images/s"
    )
    return figures


def choose(settings: AnySettings, request: Request) -> tuple[AnySettings, Path | None, str]:
    """The settings to evaluate under, the weights file (None: the model brings its own), what training recorded."""
    if settings.checkpoint is not None:
        path = Path(settings.checkpoint)
        if not path.exists():
            raise UserError(f"checkpoint={path}: no such run directory or file")
    elif isinstance(settings, Settings) and (settings.model.pretrained or settings.model.weights):
        return settings, None, ""
    else:
        path = newest_run(settings.run.root, request.recipe)
        if path is None:
            released = " or model.pretrained=true" if isinstance(settings, Settings) else ""
            raise UserError(
                f"no run of {request.recipe} under run.root={settings.run.root}: train it, or pass checkpoint=<run "
                f"directory or file>{released}"
            )
    run, checkpoint = locate(path, BEST)
    if run is not None and checkpoint is None:
        run, checkpoint = locate(path, LAST)
    if checkpoint is None:
        if path.is_dir():
            raise UserError(f"checkpoint={path} holds no complete checkpoint")
        if not isinstance(settings, Settings):
            return settings, path, ""
        return replace(settings, model=replace(settings.model, pretrained=False, weights=str(path))), None, ""
    weights = path if path.is_file() else checkpoint.best_weights
    settings, _ = reuse(read_config(run), request, without=("checkpoint", "resume"))
    settings = replace(settings, model=replace(settings.model, pretrained=False, weights=None))
    return settings, weights, _recorded(settings, checkpoint.summary()["metrics"], weights.name == AVERAGE)


def _recorded(settings: AnySettings, metrics: dict[str, float], averaged: bool) -> str:
    """What training wrote down about a checkpoint, on one line."""
    if not isinstance(settings, Settings):
        return f"update {metrics['updates']}, {told(metrics)}" if told(metrics) else ""
    prefix = "ema_" if averaged else ""
    if f"{prefix}top1" not in metrics:
        return ""
    return f"epoch {metrics['epoch']}, " + "  ".join(
        f"{name} {metrics[prefix + key]:{form}}"
        for name, key, form in (("top-1", "top1", ".2f"), ("top-5", "top5", ".2f"), ("loss", "loss", ".4f"))
    )
