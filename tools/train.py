"""`saccade train`: run a recipe, or go on with a run."""

from __future__ import annotations

import torch

from .dense.run import DenseTrainer
from .engine.checkpoint import AVERAGE, MODEL, CheckpointStore
from .engine.console import Console
from .engine.distributed import connect
from .engine.loop import Trainer
from .engine.run_directory import Start, check_unchanged, find_resumed, new_run, read_config, recipe_of
from .engine.settings import Settings
from .launch import Request, launch
from .saved_settings import AnySettings, reuse, settings_of


def main(words: list[str]) -> None:
    launch("train", words, train)


def train(request: Request) -> None:
    """Train what the request's recipe says; prints the result and where its files are."""
    settings, config = settings_of(request.config)
    place = (settings.run.root, request.recipe, settings.run.dir)
    with connect(_device(settings, place, request)) as processes:
        console = Console(processes.main)
        found = processes.from_main(lambda: find_resumed(settings.resume, *place)) if settings.resume else None
        recipe = request.recipe
        if found:
            run, checkpoint = found
            recipe, saved = recipe_of(run) or recipe, read_config(run)
            settings, config = reuse(saved, request)
            check_unchanged(run, saved, config)
        else:
            checkpoint = None
            run = processes.from_main(lambda: new_run(*place, resuming=settings.resume is not None))
            if settings.resume:
                console.print("nothing to resume yet: starting a new run")
        if settings.runtime.threads is not None:
            torch.set_num_threads(settings.runtime.threads)

        trainer = (Trainer if isinstance(settings, Settings) else DenseTrainer)(settings, processes, console)
        trainer.train(run, Start(recipe, request.command), config, checkpoint)

        best = CheckpointStore(run).find("best")
        console.print(trainer.result())
        console.print(f"files: {run}  (metrics.csv, curves.png, config.yaml, environment.json, log.txt, checkpoints)")
        if best is not None:
            weights = AVERAGE if best.average else MODEL
            console.print(f"weights: {run}/checkpoints/best/{weights}")
        console.print(f"evaluate: saccade evaluate checkpoint={run}")


def _device(settings: AnySettings, place: tuple[str, str, str | None], request: Request) -> str:
    """The device to run on: a resumed run's own, unless this command names one."""
    found = find_resumed(settings.resume, *place) if settings.resume else None
    return (reuse(read_config(found[0]), request)[0] if found else settings).runtime.device
