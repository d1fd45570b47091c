"""Mixed precision, and the step that turns accumulated gradients into an update."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad

from .settings import Optimizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stepper:
    """Scales the loss (float16 only), clips the gradients and steps the optimizer."""

    def __init__(
        self,
        settings: Optimizer,
        precision: str,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ):
        self.model, self.optimizer = model, optimizer
        self.clip, self.clip_mode = settings.clip, settings.clip_mode
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = model_parameters(self.model, exclude_head=self.clip_mode == "agc")
            dispatch_clip_grad(parameters, self.clip, mode=self.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context the forward pass runs in."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")
