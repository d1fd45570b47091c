"""The optimizer, its parameter groups and the average of the weights."""

from __future__ import annotations

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3

from ..errors import UserError, unknown
from .modeling import brief
from .settings import Optimizer


def create_optimizer(settings: Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer of that name over the model's parameter groups.

    1-D parameters, biases and what the model's `no_weight_decay` names are not decayed. With `layer_decay` the layers
    (the model's `group_matcher`) get groups whose `lr` is the base rate times `lr_scale = layer_decay ** depth below
    the head`. Every group carries an `lr_scale`; `BaseRate` keeps group rates and base rate in that proportion.

    Errors:
        UserError: unknown optimizer, arguments it does not take, or `layer_decay` on a model without layers.
    """
    if settings.name not in list_optimizers():
        raise unknown("optimizer.name", settings.name, list_optimizers())
    if settings.layer_decay is not None:
        _check_layers(model, settings.layer_decay)
    optional = {"betas": settings.betas and tuple(settings.betas), "eps": settings.eps}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=settings.layer_decay,
            **{name: value for name, value in optional.items() if value is not None},
            **settings.kwargs,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"optimizer.name={settings.name} cannot be created: {brief(error)}") from error
    for group in optimizer.param_groups:
        group["lr_scale"] = group.get("lr_scale", 1.0)
        group["lr"] = settings.lr * group["lr_scale"]
    return optimizer


def _check_layers(model: torch.nn.Module, layer_decay: float) -> None:
    matcher = getattr(model, "group_matcher", None)
    if matcher is None or len(set(group_parameters(model, matcher(coarse=False), reverse=True).values())) < 2:
        raise UserError(
            f"optimizer.layer_decay={layer_decay:g}: {type(model).__name__} does not tell its layers apart "
            "(no group_matcher); set it to null"
        )


def create_average(settings: Optimizer, model: torch.nn.Module) -> ModelEmaV3 | None:
    """The exponential moving average of the weights, if the recipe wants one."""
    if settings.ema_decay is None:
        return None
    return ModelEmaV3(model, decay=settings.ema_decay, use_warmup=settings.ema_warmup)
