"""The learning rate: one base rate that a scheduler drives, and the groups that follow it in fixed proportion."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import create_scheduler_v2

from ..errors import UserError, check_choice
from .modeling import brief
from .settings import Schedule

NAMES = ("constant", "cosine", "multistep", "poly", "step", "tanh")


class BaseRate:
    """Steps a timm scheduler once per update and gives every group `base rate * lr_scale`.

    The scheduler drives a single number, so floors, warm-up and layer decay keep their proportion under any of them.
    """

    def __init__(self, settings: Schedule, optimizer: torch.optim.Optimizer, lr: float, updates_per_epoch: int):
        check_choice("schedule.name", settings.name, NAMES)
        self.optimizer = optimizer
        self.carrier = torch.optim.SGD([torch.zeros(1)], lr=lr)
        constant = settings.name == "constant"  # a step schedule that never falls; timm names it since 1.0.31 only
        try:
            self.scheduler, self.epochs = create_scheduler_v2(
                self.carrier,
                sched="step" if constant else settings.name,
                num_epochs=settings.epochs,
                cooldown_epochs=settings.cooldown_epochs,
                warmup_epochs=settings.warmup_epochs,
                warmup_lr=settings.warmup_lr,
                min_lr=settings.min_lr,
                step_on_epochs=False,
                updates_per_epoch=updates_per_epoch,
                **({"decay_rate": 1.0} if constant else {}),
                **settings.kwargs,
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"schedule.name={settings.name} cannot be created: {brief(error)}") from error
        self.follow()

    @property
    def lr(self) -> float:
        return self.carrier.param_groups[0]["lr"]

    def follow(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]

    def step(self, updates: int) -> None:
        """Set the rate for the update that follows `updates` finished ones."""
        self.scheduler.step_update(updates)
        self.follow()

    def state_dict(self) -> dict[str, Any]:
        return {"lr": self.lr, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state["scheduler"])
        self.carrier.param_groups[0]["lr"] = state["lr"]
        self.follow()
