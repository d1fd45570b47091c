"""Official detectors and segmentors, whole: backbone, neck and heads of a file in the names of our models.

A file's backbone goes through the same `checkpoint_filter_fn` of its family as its classifiers do. Necks and heads of
mmdet 2 and mmseg 0 are called as they are in mmdet 3 and mmseg 1; those of detectron2's Mask2Former and of IDEA's DINO
are renamed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from timm.models import split_model_name_tag
from torch import Tensor, nn

from ...models.checkpoint import HOST_PREFIX, plain_state, readable, rename
from ..engine.modeling import brief
from ..errors import UserError
from .backbone import Backbone
from .dino_names import DINO, dino_state
from .mask2former_names import MASK2FORMER, MASK2FORMER_NAMES, things_first

OWN_PREFIX = f"{HOST_PREFIX}body."
# Averages that mmdet's EMA hook keeps beside the weights, and what is constant in our models.
DERIVED = ("ema_", "criterion.")


@dataclass(frozen=True)
class Report:
    """How a file and a model fit: keys loaded, keys of the model that the file lacks, keys of the file left over."""

    file: Path
    loaded: list[str]
    missing: list[str]
    unused: list[str]

    def __str__(self) -> str:
        text = f"{self.file}: loaded {len(self.loaded)} tensors"
        for keys, what in ((self.missing, "are not in it and stay as they were"), (self.unused, "of it were not used")):
            if keys:
                text += f"; {len(keys)} {what}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
        return text


def import_checkpoint(model: nn.Module, file: str | Path) -> Report:
    """Load an official file, or one of our own keys, into a detector or segmentor whose backbone is a `Backbone`.

    Raises:
        UserError: the file cannot be read, its backbone is not this one, or shapes differ; nothing is loaded then.
    """
    file = Path(file)
    state = {key: value for key, value in _read(file).items() if not key.startswith(DERIVED)}
    if not any(key.startswith(OWN_PREFIX) for key in state):
        heads = {key: value for key, value in state.items() if not key.startswith(HOST_PREFIX)}
        hosted = {key.removeprefix(HOST_PREFIX): value for key, value in state.items() if key.startswith(HOST_PREFIX)}
        if not hosted:
            raise UserError(f"{file} holds no detector or segmentor: none of its keys starts with {HOST_PREFIX}")
        state = _backbone_state(hosted, model.backbone, file) | _head_state(heads, model)
    own = model.state_dict()
    wrong = [
        f"{key} is {list(value.shape)} there and {list(own[key].shape)} here"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{file} does not fit this {type(model).__name__}: {'; '.join(wrong[:3])}{more}")
    fitting = {key: value for key, value in state.items() if key in own}
    model.load_state_dict(fitting, strict=False)
    return Report(
        file,
        loaded=sorted(fitting),
        missing=sorted(key for key in own.keys() - fitting.keys() if not key.endswith("num_batches_tracked")),
        unused=sorted(state.keys() - own.keys()),
    )


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with readable():
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no such file: {file}") from error
    except (RuntimeError, EOFError, UnpicklingError, OSError) as error:
        raise UserError(f"{file} cannot be read as weights: {brief(error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{file} holds a {type(checkpoint).__name__}, not weights")
    return {key: value for key, value in plain_state(checkpoint).items() if isinstance(value, Tensor)}


def _backbone_state(state: dict[str, Tensor], backbone: Backbone, file: Path) -> dict[str, Tensor]:
    """Return the backbone's part of our state dict, by the rules of the model's family."""
    norms = dict(zip(backbone.out_indices, backbone.norms, strict=True))
    own_norms = {
        f"norm{index}.{name}": f"{HOST_PREFIX}norms.{place}.{name}"
        for place, (index, norm) in enumerate(norms.items())
        for name in norm.state_dict()
    }
    normed = {own_norms[key]: state[key] for key in own_norms.keys() & state.keys()}
    rest = {key: value for key, value in state.items() if key not in own_norms}
    family = sys.modules[timm.model_entrypoint(split_model_name_tag(backbone.name)[0]).__module__]
    adapt: Callable[..., dict[str, Any]] = getattr(family, "checkpoint_filter_fn", lambda state, model: state)
    try:
        adapted = adapt(rest, backbone.model)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not fit backbone {backbone.name}: {brief(error)}") from error
    prefix = next(name for name, module in backbone.named_modules() if module is backbone.model)
    return {f"{HOST_PREFIX}{prefix}.{key}": value for key, value in adapted.items()} | normed


def _head_state(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return neck and heads in our names."""
    if any(key.startswith(DINO) for key in state):
        return dino_state(state, len(model.backbone.out_indices), model.bbox_head.num_classes)
    if not any(key.startswith(MASK2FORMER) for key in state):
        return state
    head = next(name for name in ("panoptic_head", "decode_head") if hasattr(model, name))
    renamed = rename(state, MASK2FORMER_NAMES)
    out = {
        f"{head}.{key.removeprefix(MASK2FORMER)}" if key.startswith(MASK2FORMER) else key: value
        for key, value in renamed.items()
    }
    if (getattr(model, head).num_classes, getattr(model, "num_stuff_classes", 0)) == (150, 50):
        out |= {key: things_first(value) for key, value in out.items() if key.startswith(f"{head}.cls_embed.")}
    return out
