"""`saccade list`: the models and the recipes there are."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import timm
import torch
from timm.models import model_entrypoint
from torch.overrides import TorchFunctionMode

from .. import list_models
from .errors import UserError, closest
from .recipe import describe_recipes


@dataclass(frozen=True)
class Entry:
    """One registered model; `tags` are the (tag, published top-1 or None) of its released weights."""

    name: str
    parameters: int
    input_size: tuple[int, int, int]
    tags: list[tuple[str, float | None]]


class Unfilled(TorchFunctionMode):
    """Inside, in-place operations are left out: models are built without the time their initialisation takes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensor = args[0] if args else kwargs.get("tensor")
        if name.endswith("_") and not name.endswith("__") and isinstance(tensor, torch.Tensor):
            return tensor
        return func(*args, **kwargs)


def entries(pattern: str, pretrained: bool) -> Iterator[Entry]:
    """The models whose name matches a wildcard pattern, with released weights only if asked."""
    for name in fnmatch.filter(list_models(), pattern):
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        if pretrained and not tags:
            continue
        with torch.device("meta"), Unfilled():
            model = timm.create_model(name)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        family = sys.modules[model_entrypoint(name).__module__]
        published = [(tag, getattr(family, "published_top1", {}).get(f"{name}.{tag}")) for tag in tags]
        yield Entry(name, parameters, tuple(model.pretrained_cfg["input_size"]), published)


def main(words: list[str]) -> None:
    if words[:1] == ["recipes"]:
        print(describe_recipes())
        return
    pretrained = "--pretrained" in words
    rest = [word for word in words if word != "--pretrained"]
    if len(rest) > 1 or (rest and rest[0].startswith("-")):
        raise UserError(f"unexpected {rest[-1]!r}: saccade list [recipes | PATTERN] [--pretrained]")
    pattern = rest[0] if rest else "*"
    found = list(entries(pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*", pretrained))
    if not found:
        near = closest(pattern.strip("*"), list_models())
        hint = f"did you mean {' or '.join(near)}?" if near else "saccade list shows them all"
        raise UserError(f"no model matches {pattern!r}{' with released weights' * pretrained}: {hint}")
    width = max(len(entry.name) for entry in found)
    print(f"{'model':{width}}  {'params':>8}  {'input':>11}  released weights (published top-1)")
    for entry in found:
        tags = ", ".join(tag if top1 is None else f"{tag} ({top1:.1f})" for tag, top1 in entry.tags)
        size = "x".join(map(str, entry.input_size))
        print(f"{entry.name:{width}}  {entry.parameters / 1e6:7.2f}M  {size:>11}  {tags or '-'}")
    print(f"{len(found)} models; timm.create_model takes these names, with .tag for one of several weights")
