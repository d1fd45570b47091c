"""The picture of a run: its figures as curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .atomic import new_file
from .loggers import Row

CURVES = "curves.png"


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what its height means, and the columns of metrics.csv it shows, with their names."""

    label: str
    columns: dict[str, str]


CLASSIFICATION = (
    Panel("cross-entropy", {"train_loss": "training", "loss": "held out", "ema_loss": "held out, averaged weights"}),
    Panel("held-out accuracy (%)", {"top1": "top-1", "ema_top1": "top-1, averaged weights", "top5": "top-5"}),
)


def draw_curves(
    path: Path, rows: list[Row], title: str, panels: tuple[Panel, ...] = CLASSIFICATION, step: str = "epoch"
) -> None:
    """Draw the rows of metrics.csv into a PNG, the panels side by side over the column `step`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _lines(axes, rows, panel.columns, step)
        axes.set_ylabel(panel.label)
        axes.set_xlabel(step)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(title)
    with new_file(path) as partial, partial.open("wb") as file:
        canvas.print_figure(file, format="png", dpi=120)


def _lines(axes, rows: list[Row], columns: dict[str, str], step: str) -> None:
    for column, label in columns.items():
        points = [(row[step], row[column]) for row in rows if column in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 3 else None)
