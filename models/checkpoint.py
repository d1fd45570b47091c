"""Foreign checkpoints: what timm is told of them, and their way out of wrappers, into our names, and into the model."""

import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import clean_state_dict
from torch import Tensor, nn

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
HOST_PREFIX = "backbone."


def readable() -> AbstractContextManager:
    """Let torch read, inside this context, files whose trainer saved its settings beside the weights.

    Those of timm's script are an argparse namespace. Those of scripts after Swin's are a yacs configuration, which
    comes as a plain mapping: nothing of the file is run, and yacs need not be there.
    """
    return torch.serialization.safe_globals([Namespace, (OrderedDict, "yacs.config.CfgNode")])


def plain_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict inside a training checkpoint, without its wrappers and the prefix of parallel training."""
    while wrapper := next((key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None):
        checkpoint = checkpoint[wrapper]
    return clean_state_dict(checkpoint)


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the backbone's state dict inside a training checkpoint: bare, DDP, EMA, or part of a larger model.

    Keys of other parts of a detector or segmenter (everything not under `backbone.`) are left out, but for the
    classifier of OpenMMLab's image classifiers.
    """
    state = plain_state(checkpoint)
    hosted = {key.removeprefix(HOST_PREFIX): value for key, value in state.items() if key.startswith(HOST_PREFIX)}
    classifier = {key: value for key, value in state.items() if hosted and key.startswith("head.fc.")}
    return {**hosted, **classifier} or state


def rename(state: Mapping[str, Tensor], rules: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """Return the state dict with every (pattern, replacement) of `re.sub` applied to its keys, one after the other."""
    out = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def imagenet_cfg(url: str = "", size: int = 224, reduction: int = 32, **kwargs: Any) -> dict[str, Any]:
    """Return a timm pretrained cfg with what most ImageNet-1k models share; `reduction` is the last stride."""
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // reduction, size // reduction),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        **kwargs,
    }


def how_to_load(variant: str) -> str:
    """Return how a file on disk gets into a model, as part of a message."""
    return (
        f"load it with timm.create_model({variant!r}, pretrained=True, pretrained_cfg_overlay=dict(file=FILE)) "
        f"or saccade evaluate classification/{variant}_in1k model.weights=FILE data.root=FOLDER"
    )


def check_fit(state: Mapping[str, Tensor], model: nn.Module, optional: Iterable[str] = ()) -> None:
    """Check that a state dict in our names fits the model, but for what timm adapts: the classifier and the first conv.

    Args:
        optional: prefixes of keys that may be absent, e.g. the head of a file made for detection.

    Raises:
        ValueError: keys are missing or unknown, or shapes differ; the message names them.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    first_conv = model.pretrained_cfg["first_conv"] + ".weight"
    classifiers = model.pretrained_cfg["classifier"]
    classifiers = tuple(f"{path}." for path in ((classifiers,) if isinstance(classifiers, str) else classifiers))
    faults = {
        "missing": [key for key in own if key not in state and not key.startswith((*classifiers, *optional))],
        "unknown": [key for key in state if key not in own and not key.startswith(classifiers)],
        "of another shape": [
            f"{key} {tuple(value.shape)} (here {own[key]})"
            for key, value in state.items()
            if key in own and tuple(value.shape) != own[key] and not key.startswith((*classifiers, first_conv))
        ],
    }
    text = [f"{len(keys)} {fault}: {_shorten(keys)}" for fault, keys in faults.items() if keys]
    if text:
        raise ValueError(f"the state dict does not fit this {type(model).__name__}; keys " + "; ".join(text))


def _shorten(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
