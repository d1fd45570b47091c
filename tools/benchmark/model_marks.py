"""The models that are measured, and what they must reach on one H200 in bfloat16, compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .report import table

SWIN, FOCALNET = "swin_tiny_patch4_window7_224", "focalnet_tiny_srf"
MODELS = (
    "nat_tiny",
    "van_b2",
    "focalnet_tiny_srf_fused",
    "litv2_small",
    "flatten_swin_tiny",
    "agent_swin_tiny",
    "ravlt_small",
    "mavit_small",
    "convnext_tiny",
    SWIN,
    FOCALNET,
    "deit_small_patch16_224",
)


class Mark(NamedTuple):
    """What a model must reach at a size: more than `bound`, or than `bound` times another's; or less, with `below`."""

    model: str
    size: int
    measure: str
    bound: float
    than: str | None = None
    below: bool = False

    def __str__(self) -> str:
        sign = "at most" if self.below else "at least"
        times = f"{self.bound:g} x {self.than}" if self.than else f"{self.bound:g}"
        return f"{self.measure} {sign} {times} at {self.size}"


INFER, TRAIN = "infer_images_per_s", "train_images_per_s"
MARKS = (
    Mark("nat_tiny", 224, INFER, 12_500),
    Mark("nat_tiny", 224, TRAIN, 4_400),
    Mark("nat_tiny", 224, "train_peak_GiB", 1.0, SWIN, below=True),
    Mark("van_b2", 224, INFER, 13_000),
    Mark("van_b2", 224, TRAIN, 3_800),
    Mark("litv2_small", 224, INFER, 15_000),
    *(Mark("focalnet_tiny_srf_fused", 224, measure, 1.3, FOCALNET) for measure in (INFER, TRAIN)),
    *(
        Mark(model, size, measure, bound, SWIN)
        for model in ("flatten_swin_tiny", "agent_swin_tiny")
        for size, bound in ((224, 0.9), (896, 2.0))
        for measure in (INFER, TRAIN)
    ),
    *(Mark(model, 224, "train_attention_share", 0.25, below=True) for model in ("ravlt_small", "mavit_small")),
)


def judge(rows: Sequence[dict]) -> Iterator[tuple[Mark, float | None, float | None]]:
    """Yield the marks of the models and sizes measured, with what was found and the bound, None where it is not known.

    Rows of a CPU have no marks, and an eager model is not held to those of a compiled one.
    """
    found = {(row["implementation"], row["size"]): row for row in rows if row["judged"]}
    for mark in MARKS:
        mine = found.get((mark.model, mark.size))
        if mine is None:
            continue
        bound = mark.bound
        if mark.than is not None:
            other = found.get((mark.than, mark.size), {}).get(mark.measure)
            bound = None if other is None else bound * other
        yield mark, mine.get(mark.measure), bound


def verdict(mark: Mark, found: float | None, bound: float | None) -> str:
    """Return whether a mark is met."""
    if found is None or bound is None:
        return "not measured"
    return "yes" if (found <= bound if mark.below else found >= bound) else "NO"


def summary(rows: Sequence[dict]) -> str:
    """Return the rows, and the marks of what was measured, as Markdown tables."""
    shares = ("infer_attention_share", "train_attention_share")
    measures = [INFER, "infer_peak_GiB", TRAIN, "train_peak_GiB", *shares]
    measures = [measure for measure in measures if any(measure in row for row in rows)]
    header = ("model", "pixels", *(measure.replace("_", " ") for measure in measures))
    lines = [(row["implementation"], str(row["size"]), *(_cell(row, measure) for measure in measures)) for row in rows]
    marks = [
        (mark.model, str(mark), _number(found), _number(bound), verdict(mark, found, bound))
        for mark, found, bound in judge(rows)
    ]
    if not marks:
        return table(header, lines)
    return f"{table(header, lines)}\n\n{table(('model', 'mark', 'measured', 'bound', 'met'), marks)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cell(row: dict, measure: str) -> str:
    error = row.get(measure.split("_")[0] + "_error")
    if measure not in row and measure.endswith("per_s") and error:
        return f"failed: {error}".replace("|", "/")
    return _number(row.get(measure))
