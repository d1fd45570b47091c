"""Detection and segmentation on mmengine's Runner, with the run directory and the console of every other task."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.checkpoint import Checkpoint
from ..engine.console import Console
from ..engine.distributed import Processes
from ..engine.loggers import Row, open_loggers
from ..engine.modeling import brief
from ..engine.run_directory import Start, record_start
from ..errors import UserError, check_choice
from .figures import name_figures, told
from .settings import Settings
from .shapes_dataset import Shapes, make_shapes
from .toolboxes import PACKAGES, check_toolboxes

if TYPE_CHECKING:
    from .runner import Runner

LOG = "log.txt"
REJECTED = (TypeError, ValueError, KeyError, AttributeError, AssertionError, FileNotFoundError)


class DenseTrainer:
    """One run of a detector or a segmentor."""

    def __init__(self, settings: Settings, processes: Processes, console: Console):
        check_toolboxes()
        prepare_data(settings, processes, console)
        check_data(Path(settings.data.root), settings.data.train, settings.data.eval)
        self.settings, self.processes, self.console = settings, processes, console

    def train(self, run: Path, start: Start, config: dict[str, Any], resumed: Checkpoint | None) -> None:
        """Train to the last update; `config` is what goes into the run directory as its settings."""
        from .config import dense_config
        from .record import EvaluationBar, Progress, Record
        from .runner import Runner, place_draws

        settings, processes, console = self.settings, self.processes, self.console
        toolbox = dense_config(settings, run)
        place_draws(toolbox)
        self.progress = Progress(**resumed.training_state()["progress"]) if resumed else Progress()
        new = processes.from_main(lambda: [path for path in (run, *run.parents) if not path.exists()])
        with output_into(run / LOG, processes.main):
            try:
                runner = build(lambda: Runner(toolbox, processes, resumed), ("train_loop", "val_loop"))
            except UserError:
                if processes.main and run in new:
                    shutil.rmtree(run, ignore_errors=True)
                    with contextlib.suppress(OSError):  # another run may have come into a folder above meanwhile
                        for path in new[1:]:
                            path.rmdir()
                raise
            if processes.main:
                record_start(run, start, config, runner.plain_model, processes.size, resumed)
            console.keep(run / LOG)
            console.print(self.describe(runner))
            if resumed:
                console.print(f"resumed from {resumed.path}")
            record = Record(
                settings,
                processes,
                console,
                run,
                f"{start.recipe}: {settings.model.name}",
                self.progress,
                lambda done: open_loggers(settings.logger, run, start.recipe, config, done, "updates"),
            )
            runner.register_hook(record)
            runner.register_hook(EvaluationBar(console))
            try:
                with unreadable_images_told(settings.data.root):
                    runner.train()
            finally:
                record.close()
                runner.close()

    def describe(self, runner: Runner) -> str:
        """One line on what will be trained."""
        settings, processes, loader = self.settings, self.processes.size, runner.train_dataloader
        micro = loader.batch_sampler.batch_size
        steps = settings.batch_size // (processes * micro)
        return (
            f"{told_model(runner, settings)}; {len(loader.dataset)} training and "
            f"{len(runner.val_dataloader.dataset)} held-out images; batch {settings.batch_size} = {processes} "
            f"processes x {steps} steps x {micro}; {runner.train_loop.max_iters // steps} updates"
        )

    def result(self) -> str:
        """What the best checkpoint reached."""
        progress = self.progress
        row = next((row for row in progress.metrics if row["updates"] == progress.best_updates), {})
        return f"best: {told(row)} at update {progress.best_updates} of {progress.updates}"


def evaluate(settings: Settings, weights: Path, processes: Processes, console: Console) -> Row:
    """Measure weights on a recipe's evaluation images; prints and returns the figures."""
    check_toolboxes()
    prepare_data(settings, processes, console)
    check_data(Path(settings.data.root), settings.data.eval)
    from .record import EvaluationBar

    with measuring_runner(settings, weights, processes) as runner:
        build(lambda: runner, ("test_loop",))
        runner.register_hook(EvaluationBar(console))
        began = time.perf_counter()
        with unreadable_images_told(settings.data.root):
            figures = name_figures(runner.test())
        seconds = time.perf_counter() - began
        images = len(runner.test_dataloader.dataset)
        console.print(
            f"{told_model(runner, settings)}, on {images} images of {settings.data.root}: {told(figures)}  "
            f"{images / seconds:.1f} images/s"
        )
    return figures


@contextlib.contextmanager
def measuring_runner(settings: Settings, weights: Path, processes: Processes) -> Iterator[Runner]:
    """A runner that has loaded `weights` and leaves no files behind."""
    from .config import dense_config
    from .runner import Runner
    from .weights import load

    with tempfile.TemporaryDirectory() as scratch, output_into(Path(scratch) / LOG, True):
        config = dense_config(settings, scratch)
        for name in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
            config[name] = None
        runner = build(lambda: Runner(config, processes), ())
        try:
            load(runner.plain_model, weights)
            yield runner
        finally:
            runner.close()


def check_data(root: Path, *parts: dict[str, Any]) -> None:
    """Raise unless the annotation files and the folders that these parts of a recipe's data name are in `root`."""
    if not root.is_dir():
        raise UserError(f"data.root={root} is no folder")
    for part in parts:
        named = [part.get("ann_file"), *(part.get("data_prefix") or {}).values()]
        missing = [name for name in named if name and not (root / name).exists()]
        if missing:
            raise UserError(f"data.root={root} has no {' and no '.join(missing)}")


def prepare_data(settings: Settings, processes: Processes, console: Console) -> None:
    """Draw the shapes that a quickstart learns from, where its data.root is still absent or empty."""
    if settings.data.make is None:
        return
    check_choice("data.make", settings.data.make, ("shapes",))
    root, shapes = Path(settings.data.root), Shapes()

    def make() -> None:
        if root.is_dir() and any(root.iterdir()):
            return
        console.print(f"drawing {shapes.train + shapes.val} pictures of shapes into {root}")
        make_shapes(root, shapes, console.progress)

    processes.from_main(make)


def build(make: Callable[[], Runner], parts: tuple[str, ...]) -> Runner:
    """Make a runner with these parts of it; what a toolbox rejects becomes an error for a person."""
    try:
        runner = make()
        for part in parts:
            getattr(runner, part)
    except REJECTED as error:
        raise UserError(f"the toolboxes reject this recipe: {brief(error)}") from error
    return runner


@contextlib.contextmanager
def unreadable_images_told(root: str) -> Iterator[None]:
    """Make an error for a person of an image that is not there or is no image."""
    try:
        yield
    except (FileNotFoundError, AssertionError) as error:
        last = str(error).strip().splitlines()[-1:]  # a loader's process sends its whole traceback
        if isinstance(error, AssertionError) and not (last and "failed to load image" in last[0]):
            raise
        raise UserError(f"data.root={root}: {last[0] if last else error}", local=True) from error


def told_model(runner: Runner, settings: Settings) -> str:
    model = runner.plain_model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__} on {settings.model.name}: {parameters / 1e6:.2f} M parameters"


@contextlib.contextmanager
def output_into(log: Path, main: bool) -> Iterator[None]:
    """Send what the toolboxes print, and what they warn of, into the log; a Console made before still gets through."""
    log.parent.mkdir(parents=True, exist_ok=True)
    show = warnings.showwarning

    def keep(message: Warning | str, category: type[Warning], filename: str, lineno: int, *place: Any) -> None:
        if PACKAGES.keys() & set(Path(filename).parts):
            file.write(warnings.formatwarning(message, category, filename, lineno))
        else:
            show(message, category, filename, lineno, *place)

    with open(log if main else os.devnull, "a", buffering=1) as file, contextlib.redirect_stdout(file):
        warnings.showwarning = keep
        try:
            yield
        finally:
            warnings.showwarning = show
