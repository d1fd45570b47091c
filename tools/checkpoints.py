"""`saccade checkpoints`: writes checkpoints.md, the table of released weights and what verifies their ports."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, model_entrypoint
from torch.utils.flop_counter import FlopCounterMode

from .. import list_models
from .engine.atomic import write_text
from .errors import UserError

ROOT = Path(__file__).parent.parent
GOLDENS = ROOT / "tests" / "goldens"

HEADER = """\
# Released checkpoints

Written by `saccade checkpoints`; edit the pretrained cfgs, not this file. `timm.create_model(name, pretrained=True)`
takes the names, and loads each file as its authors saved it.

MACs are multiply-adds of convolutions, linear layers and token mixers at the input size, counted by
`torch.utils.flop_counter`. Top-1 is on ImageNet-1k as the source linked from it states; no weights were run here.
"Verified against" names the numbers (`tests/goldens`), measured on the official code with the same weights, that the
model reproduces. Where there are none, the port rests on the parameters' count and on its verified relatives.
"""

COLUMNS = ("weights", "params", "MACs", "input", "top-1", "file", "licence", "verified against")


@cache
def measure(name: str, input_size: tuple[int, int, int], num_classes: int, **options: Any) -> tuple[int, int]:
    """Return the parameters and multiply-adds of a model built with `options`, counted on the meta device."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=num_classes, **options).eval()
        image = torch.empty(1, *input_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def goldens() -> dict[str, list[str]]:
    """Return the names of the goldens of each model."""
    found = defaultdict(list)
    for path in sorted(GOLDENS.glob("*/*.json")):
        if model := json.loads(path.read_text()).get("model"):
            found[model].append(path.stem)
    return found


def families() -> Iterator[tuple[ModuleType, list[str]]]:
    """Yield each family's module and the names of its models."""
    for module, names in groupby(sorted(list_models(), key=_module_of), key=_module_of):
        yield sys.modules[module], list(names)


def _module_of(name: str) -> str:
    return model_entrypoint(name).__module__


def row(tagged: str, cfg: PretrainedCfg, top1: float | None, verified: list[str]) -> str:
    """Return one line of the table."""
    parameters, macs = measure(tagged.split(".")[0], cfg.input_size, cfg.num_classes)
    link = cfg.url or (f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else "")
    cells = (
        f"`{tagged}`",
        f"{parameters / 1e6:.2f} M",
        f"{macs / 1e9:.2f} G",
        "x".join(map(str, cfg.input_size[1:])),
        f"[{top1}]({cfg.origin_url})" if top1 else "-",
        f"[{PurePosixPath(urlsplit(link).path).name}]({link})" if link else "; ".join(cfg.notes),
        cfg.license,
        ", ".join(verified) or "-",
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the text of checkpoints.md."""
    verified = goldens()
    rule = "|".join(["---"] * len(COLUMNS))
    parts = [HEADER]
    for family, names in families():
        published = getattr(family, "published_top1", {})
        rows = [
            row(tagged, cfg, published.get(tagged), verified[name])
            for name in names
            for tagged, cfg in get_arch_pretrained_cfgs(name).items()
            if cfg.has_weights or cfg.notes
        ]
        if not rows:
            continue
        title = family.__doc__.splitlines()[0].rstrip(".")
        parts.append("\n".join([f"## {title}\n", f"| {' | '.join(COLUMNS)} |", f"|{rule}|", *rows, ""]))
    return "\n".join(parts)


def main(words: list[str]) -> None:
    if words:
        raise UserError(f"unexpected {words[0]!r}: saccade checkpoints takes nothing")
    if not GOLDENS.is_dir():
        raise UserError(f"{ROOT} is no source checkout: checkpoints.md is written in one, beside tests/goldens")
    path = ROOT / "checkpoints.md"
    write_text(path, table())
    print(f"wrote {path}")
