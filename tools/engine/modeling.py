"""The model a recipe names, and weights for it from files of any make."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag

from ... import list_models
from ...layers import MIXERS
from ..errors import UserError, check_choice, unknown

if TYPE_CHECKING:
    from ..dense.settings import Model as Backbone
    from .settings import Data, Model


def check_model_name(name: str) -> None:
    """Raise unless timm (with saccade's models registered) knows the model and its pretrained tag."""
    base, tag = split_model_name_tag(name)
    if not is_model(base):
        raise unknown("model", name, timm.list_models())
    if tag:
        try:
            get_pretrained_cfg(name)  # also of weights that can only be fetched by hand, which timm does not list
        except RuntimeError as error:
            tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
            raise (
                unknown(f"pretrained tag of {base}", tag, tags) if tags else UserError(f"{base} has no pretrained tags")
            ) from error


def lay_channels_last(model: torch.nn.Module) -> None:
    """Give a model's convolutions the channels-last memory format.

    Not the whole model: tables of positions may have other than four dimensions, which that format refuses.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)


def create_model(model: Model, num_classes: int | None) -> torch.nn.Module:
    """Create a recipe's model, with `num_classes` outputs (None keeps the number its weights were made for).

    Weights must fit to the last key; a classifier for another number of classes is replaced after loading.

    Errors:
        UserError: unknown model or tag, arguments it does not take, weights that cannot be had or do not fit.
    """
    check_model_name(model.name)
    options = mixer_options(model)
    overlay, made_for = _weights_source(model)
    try:
        created = timm.create_model(
            model.name,
            pretrained=overlay is not None,
            pretrained_cfg_overlay=overlay,
            num_classes=made_for or num_classes,
            drop_rate=model.drop_rate,
            drop_path_rate=model.drop_path_rate,
            **options,
            **model.kwargs,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError, SafetensorError, UnpicklingError) as error:
        if overlay is not None:
            source = model.weights or "the released weights"
            raise UserError(
                f"model.name={model.name} cannot load {source}: {brief(error.__cause__ or error)}"
            ) from error
        if isinstance(error, (TypeError, ValueError, AssertionError)):
            told = "".join(f", model.{key}={value}" for key, value in (options | {"kwargs": model.kwargs}).items())
            raise UserError(f"model.name={model.name}{told}: {brief(error)}") from error
        raise
    if num_classes is not None and num_classes != created.num_classes:
        created.reset_classifier(num_classes)
    return created


def mixer_options(model: Model | Backbone) -> dict[str, Any]:
    """What a recipe's mixer is to `timm.create_model`; nothing where it names none.

    Errors:
        UserError: no mixer has that name, or the model takes none.
    """
    told = {"mixer": model.mixer, "mixer_kwargs": model.mixer_kwargs}
    options = {key: value for key, value in told.items() if value}
    if not options:
        return options
    for mixer in [model.mixer] if isinstance(model.mixer, str) else model.mixer or []:
        check_choice("model.mixer", str(mixer), MIXERS)
    check_carries_mixers(model.name)
    return options


def check_carries_mixers(name: str) -> None:
    """Raise unless a model can be given any mixer; the message names those that can."""
    check_model_name(name)
    try:
        with torch.device("meta"):
            timm.create_model(name, mixer="softmax", mixer_kwargs={})
    except TypeError as error:
        if "mixer" not in str(error):
            raise
        some = ", ".join(list_models(["pyramid_*", "any_*"]))
        raise UserError(
            f"{name} takes no mixer, it has its own; those that do are {some} and NAT's and DiNAT's pyramids"
        ) from error


def _weights_source(model: Model) -> tuple[dict[str, Any] | None, int | None]:
    """What to lay over the model's pretrained_cfg to load its weights (None: no weights), and their classes."""
    if model.weights is None:
        return ({}, get_pretrained_cfg(model.name).num_classes) if model.pretrained else (None, None)
    made_for = model.weights_classes or get_pretrained_cfg(model.name).num_classes
    if Path(model.weights).is_file():
        return {"file": model.weights, "num_classes": made_for}, made_for
    base, tag = split_model_name_tag(model.weights)
    if not (tag and is_model(base)):
        raise UserError(f"model.weights={model.weights} is neither a file nor released weights (name.tag)")
    check_model_name(model.weights)
    source = get_pretrained_cfg(model.weights)
    return {"url": source.url, "notes": source.notes, "num_classes": source.num_classes}, source.num_classes


def brief(error: Exception, most: int = 300) -> str:
    """An exception's text on one line, cut where it gets long (a state dict's keys)."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + " ..."


def data_config(data: Data, model: torch.nn.Module, test_size: bool = False) -> dict[str, Any]:
    """Input size, normalisation, interpolation and crop: the model's pretrained_cfg under the recipe's `data`.

    `test_size` takes the size and crop a pretrained_cfg names for testing where it has one, as timm's validation does.
    """
    names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    chosen = {name: getattr(data, name) for name in names}
    try:
        return resolve_data_config(chosen, model=model, use_test_size=test_size)
    except AssertionError as error:
        raise UserError(
            f"data.mean={data.mean} and data.std={data.std} do not fit data.input_size={data.input_size}"
        ) from error


def load_weights(model: torch.nn.Module, file: Path) -> None:
    """Load a file of this model's own keys, as training saves it; nothing is loaded unless everything fits.

    Errors:
        UserError: the file cannot be read, or its keys or shapes differ from the model's; the message names them.
    """
    try:
        state = load(file.read_bytes())  # not mapped: a file that shrinks meanwhile would kill the process
    except FileNotFoundError as error:
        raise UserError(f"no such file: {file}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a readable safetensors file ({brief(error)}); it may be cut short") from error
    wanted = model.state_dict()
    problems = []
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing:
        problems.append(f"{len(missing)} keys missing ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})")
    if extra:
        problems.append(f"{len(extra)} keys unknown ({', '.join(extra[:3])}{', ...' if len(extra) > 3 else ''})")
    shapes = [
        f"{key} is {list(state[key].shape)} there and {list(value.shape)} here"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if shapes:
        problems.append("; ".join(shapes[:3]) + (f"; and {len(shapes) - 3} more" if len(shapes) > 3 else ""))
    if problems:
        raise UserError(f"{file} does not fit this {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(state)
