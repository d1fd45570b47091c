"""What `accelerate` says: what it swapped, what it left alone and why, and how much that gains."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn

from . import measured
from .measured import Gain


@dataclass
class Report:
    """What became of a model's modules.

    Args:
        model: the model's name in timm, or its class.
        device: the device the model is on.
        swapped: module name -> (its type in timm, our operator).
        left: module name -> (its type in timm, why it was left alone).
        gains: what was measured for this model.
    """

    model: str
    device: torch.device
    swapped: dict[str, tuple[str, str]] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)
    gains: list[Gain] = field(default_factory=list)

    @property
    def gained(self) -> bool:
        """Whether the model was measured, and was faster in every case."""
        return bool(self.gains) and all(min(gain.infer, gain.train) > 1 for gain in self.gains)

    def __str__(self) -> str:
        lines = [f"saccade.accelerate: {self.model}"]
        lines += [
            f"  swapped  {n} x {kind}: {operator}" for (kind, operator), n in Counter(self.swapped.values()).items()
        ]
        lines += [f"  left     {n} x {kind}: {reason}" for (kind, reason), n in Counter(self.left.values()).items()]
        if not self.swapped:
            return "\n".join([*lines, "  nothing to swap"])
        here = _device_name(self.device)
        measured_here = [gain for gain in self.gains if gain.device == here]
        if not measured_here:
            lines.append("  gain     not measured on this device; saccade benchmark accelerate measures it")
        lines += [f"  gain     {gain}" for gain in measured_here or self.gains]
        return "\n".join(lines)


def describe(model: nn.Module) -> Report:
    """Return an empty report on a model, with what was measured for it."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture") or type(model).__name__
    parameter = next(model.parameters(), None)
    gains = [gain for gain in measured.MODEL_GAINS if gain.model == name]
    return Report(name, torch.device("cpu") if parameter is None else parameter.device, gains=gains)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
