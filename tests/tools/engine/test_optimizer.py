"""Parameter groups and the rates they get."""

import math

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.scheduler import CosineLRScheduler

from saccade.tools.engine.optimizer import create_optimizer
from saccade.tools.engine.schedule import NAMES, BaseRate
from saccade.tools.engine.settings import Optimizer, Schedule
from saccade.tools.errors import UserError


def optimizer_settings(**changes) -> Optimizer:
    rates = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "layer_decay": None, "momentum": 0.9}
    rest = {"betas": [0.9, 0.99], "eps": 1e-7, "kwargs": {}, "clip": None, "clip_mode": "norm"}
    return Optimizer(**(rates | rest | {"ema_decay": None, "ema_warmup": False} | changes))


def schedule_settings(**changes) -> Schedule:
    epochs = {"epochs": 10, "cooldown_epochs": 2, "warmup_epochs": 2}
    return Schedule(**({"name": "cosine", "warmup_lr": 1e-6, "min_lr": 1e-5, "kwargs": {}} | epochs | changes))


def by_parameter(model, optimizer, key) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def test_decay_spares_vectors_and_biases():
    model = timm.create_model("nat_nano")
    decay = by_parameter(model, create_optimizer(optimizer_settings(), model), "weight_decay")
    for name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or name in model.no_weight_decay()
        assert decay[name] == (0.0 if spared else 0.05), name
    settings = create_optimizer(optimizer_settings(), model).param_groups[0]
    assert settings["betas"] == (0.9, 0.99) and settings["eps"] == 1e-7


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layer_decay_gives_each_depth_its_rate(name):
    model = timm.create_model("nat_nano")
    rates = by_parameter(model, create_optimizer(optimizer_settings(name=name, layer_decay=0.5), model), "lr")
    depths = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    deepest = max(depths.values())
    assert deepest > 8
    for parameter, rate in rates.items():
        assert rate == pytest.approx(1e-3 * 0.5 ** (deepest - depths[parameter])), parameter
    assert rates["head.fc.weight"] == 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_rates_keep_their_proportion_under_any_schedule(name):
    """Floors and warm-up included, which per-group schedules would give every layer alike."""
    model = timm.create_model("nat_nano")
    optimizer = create_optimizer(optimizer_settings(layer_decay=0.5), model)
    kwargs = {"decay_milestones": [3, 6]} if name == "multistep" else {}
    rate = BaseRate(schedule_settings(name=name, kwargs=kwargs), optimizer, 1e-3, updates_per_epoch=4)
    seen = []
    for update in range(1, 4 * rate.epochs):
        rate.step(update)
        seen.append(rate.lr)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate.lr * group["lr_scale"], rel=1e-12)
    assert seen[0] < seen[6] == pytest.approx(1e-3, rel=0.3)
    assert (seen[-1] == 1e-3) == (name == "constant") or name in ("step",)


def test_cosine_is_timm_s_with_warmup_and_cooldown():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr_scale": 1.0}], lr=1e-3)
    rate = BaseRate(schedule_settings(), optimizer, 1e-3, updates_per_epoch=5)
    reference = CosineLRScheduler(
        torch.optim.SGD([parameter], lr=1e-3), 50, lr_min=1e-5, warmup_t=10, warmup_lr_init=1e-6, t_in_epochs=False
    )
    assert rate.epochs == 12
    assert rate.lr == 1e-6
    for update in range(1, 60):
        rate.step(update)
        assert rate.lr == pytest.approx(reference._get_lr(update)[0])
        if update == 30:
            assert rate.lr == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 0.6)))
        assert rate.lr == 1e-5 or update < 50


def test_state_comes_back():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizers = [torch.optim.SGD([{"params": [parameter], "lr_scale": 0.5}], lr=1e-3) for _ in range(2)]
    first, second = (BaseRate(schedule_settings(), optimizer, 1e-3, 5) for optimizer in optimizers)
    first.step(17)
    second.load_state_dict(first.state_dict())
    assert second.lr == first.lr and optimizers[1].param_groups[0]["lr"] == first.lr / 2


def test_layer_decay_needs_layers():
    with pytest.raises(UserError, match=r"optimizer.layer_decay=0.5: Linear does not tell its layers apart"):
        create_optimizer(optimizer_settings(layer_decay=0.5), torch.nn.Linear(2, 2))
