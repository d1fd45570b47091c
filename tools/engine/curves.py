"""The picture of a run: loss and accuracy by epoch."""

from __future__ import annotations

from pathlib import Path

from .atomic import new_file
from .loggers import Row

CURVES = "curves.png"


def draw_curves(path: Path, rows: list[Row], title: str) -> None:
    """Draw the rows of metrics.csv into a PNG, loss on the left, accuracy on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    losses, accuracies = figure.subplots(1, 2)
    _lines(losses, rows, {"train_loss": "training", "loss": "held out", "ema_loss": "held out, averaged weights"})
    losses.set_ylabel("cross-entropy")
    _lines(accuracies, rows, {"top1": "top-1", "ema_top1": "top-1, averaged weights", "top5": "top-5"})
    accuracies.set_ylabel("held-out accuracy (%)")
    for axes in (losses, accuracies):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(title)
    with new_file(path) as partial, partial.open("wb") as file:
        canvas.print_figure(file, format="png", dpi=120)


def _lines(axes, rows: list[Row], columns: dict[str, str]) -> None:
    for column, label in columns.items():
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 3 else None)
