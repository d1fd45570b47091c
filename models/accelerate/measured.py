"""What was measured: how much a model gains, and for which shapes a depthwise convolution of ours wins.

The figures are data: `saccade benchmark accelerate out=models/accelerate` writes them beside this file, as
accelerate.json (models) and accelerate_depthwise.json. Without the files nothing is claimed and no convolution swapped.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BEFORE, AFTER = "timm", "accelerated"
MODELS, DEPTHWISE = "accelerate", "accelerate_depthwise"


@dataclass(frozen=True)
class Gain:
    """How many times the images per second of a model grew, on one device."""

    model: str
    setting: str
    infer: float
    train: float
    device: str
    date: str

    def __str__(self) -> str:
        return f"{self.infer:.2f}x inference, {self.train:.2f}x training ({self.setting}; {self.device}, {self.date})"


def read(name: str, folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Return a table of the benchmark, or an empty one where it was not measured."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"environment": {}, "rows": []}


def _pairs(table: dict[str, Any]) -> Iterator[tuple[dict, dict]]:
    """Yield the rows of each case before and after, where both were measured."""
    rows = [row for row in table["rows"] if "error" not in row]
    after = {row["case"]: row for row in rows if row["implementation"] == AFTER}
    for row in rows:
        if row["implementation"] == BEFORE and row["case"] in after:
            yield row, after[row["case"]]


def model_gains(table: dict[str, Any]) -> list[Gain]:
    """Return the gains of every model and setting in the table of models."""
    about = table["environment"]
    gains = []
    for before, after in _pairs(table):
        infer, train = (after[f"{use}_images_per_s"] / before[f"{use}_images_per_s"] for use in ("infer", "train"))
        gains.append(Gain(before["model"], before["setting"], infer, train, about["device"], about["date"]))
    return gains


def depthwise_gains(table: dict[str, Any]) -> dict[tuple, dict[tuple[int, int, int], tuple[float, float]]]:
    """Return what our convolution gains over torch's, from the table of depthwise convolutions.

    Returns:
        (kernel, dilation, dtype, type of device) -> shape [C, H, W] -> (gain forward, gain forward and backward).
    """
    gains = {}
    for before, after in _pairs(table):
        key = tuple(before["kernel"]), tuple(before["dilation"]), getattr(torch, before["dtype"]), before["device"]
        gain = tuple(before[time] / after[time] for time in ("forward_ms", "forward_backward_ms"))
        gains.setdefault(key, {})[tuple(before["shape"])] = gain
    return gains


MODEL_GAINS = model_gains(read(MODELS))
DEPTHWISE_GAINS = depthwise_gains(read(DEPTHWISE))


def nearest(gains: dict[tuple[int, int, int], tuple[float, float]], shape: Sequence[int]) -> tuple[float, float]:
    """Return the gains at the measured shape whose channels and tokens are nearest to those of [C, H, W]."""
    return gains[min(gains, key=lambda measured: _distance(measured, shape))]


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Return how many times the channels and tokens of one map are those of another."""
    channels, tokens = one[0] / other[0], one[1] * one[2] / (other[1] * other[2])
    return max(channels, 1 / channels) * max(tokens, 1 / tokens)
