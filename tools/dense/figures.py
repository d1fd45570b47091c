"""The toolboxes' figures under the names that this project's files and lines use, all in percent."""

from __future__ import annotations

from numbers import Number

from ..engine.curves import Panel
from ..engine.loggers import Row

TOLD = {  # in the order of importance: the first one that a task has decides which checkpoint is best
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "miou": "mIoU",
    "macc": "mean accuracy",
    "pq": "PQ",
}
PANELS = (
    Panel("training loss", {"train_loss": "loss"}),
    Panel(
        "held out (%)",
        {name: TOLD[name] for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "miou", "macc", "pq")},
    ),
)
KINDS = {"bbox": "box", "segm": "mask"}


def name_figures(metrics: dict[str, float]) -> Row:
    """Rename an evaluator's figures: `coco/bbox_mAP_50` of 0.62 is `box_ap50` of 62.0, `mIoU` is `miou`.

    COCO's -1, for a figure of objects there are none of, is left out; its evaluator's silence about a detector that
    finds nothing at all is an AP of 0.
    """
    if not metrics:
        return {"box_ap": 0.0, "box_ap50": 0.0}
    figures: Row = {}
    for name, value in metrics.items():
        kind, _, measure = name.rpartition("/")[2].partition("_mAP")
        if kind in KINDS:
            if value >= 0:
                figures[f"{KINDS[kind]}_ap{measure.removeprefix('_')}"] = round(100 * value, 4)
        elif isinstance(value, Number):
            figures[name.rpartition("/")[2].lower()] = round(float(value), 4)
    return figures


def judge(figures: Row) -> float:
    """The figure that tells which of two checkpoints is better."""
    return next((figures[name] for name in TOLD if name in figures), 0.0)


def told(row: Row) -> str:
    """The figures of a row that are worth a line."""
    return "  ".join(f"{label} {row[name]:.1f}" for name, label in TOLD.items() if name in row)
