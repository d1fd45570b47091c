"""`saccade benchmark accelerate`: what `saccade.accelerate` gains in timm's models, and where depthwise kernels win.

`out=models/accelerate` records the figures where `accelerate` reads them: its report quotes the models' gains, and a
depthwise convolution is swapped for the shapes that won.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import timm
import torch

from ...models.accelerate import measured
from ..errors import UserError
from ..words import read_device, read_list, read_number, read_words
from .kernels import measure as measure_operator
from .models import release, take_step
from .operators.depthwise import Case
from .problem import Draw, Formulation
from .report import collect, one_line, table
from .steps import BATCH, COMPILATIONS
from .warm import ACCELERATED, AS_IS, warm

MODELS = (
    "swin_tiny_patch4_window7_224",
    "focalnet_tiny_srf",
    "davit_tiny",
    "twins_svt_small",
    "tiny_vit_21m_224",
    "maxvit_tiny_rw_224",
    "gcvit_tiny",
    "hiera_tiny_224",
    "halonet26t",
    "convnext_tiny",
)
DEPTHWISE = tuple(
    Case(128, side, side, channels * 56 // side, kernel, 1)
    for kernel, channels in ((7, 96), (7, 128), (9, 96), (11, 96))
    for side in (56, 28, 14, 7)
)


def own_size(name: str) -> int:
    """Return the side, in pixels, of the images that a model of timm's is made for."""
    cfg = timm.get_pretrained_cfg(name)
    return 224 if cfg is None else cfg.input_size[-1]


def model_rows(
    sizes: Mapping[str, int], compilations: Sequence[str], device: torch.device, end: float
) -> Iterator[dict]:
    """Measure each model as timm has it and accelerated, in inference and training; what fails says why in its row.

    Args:
        sizes: the models' names, and the side of each one's images.
        compilations: modes of torch.compile, or "none".
        end: the time, on the monotonic clock, after which nothing more is begun.
    """
    for compilation in compilations:
        for name, size in sizes.items():
            setting = f"{size} pixels, bfloat16, compile={compilation}"
            for implementation in (measured.BEFORE, measured.AFTER):
                row = {"case": f"{name}, {setting}", "implementation": implementation}
                row |= {"model": name, "setting": setting}
                try:
                    if time.monotonic() > end:
                        raise TimeoutError("the budget was used up")
                    for measure in BATCH:
                        release(device)
                        take_step(row, measure, name, size, device, compilation, implementation == measured.AFTER)
                except Exception as error:
                    # Memory, a size that a model does not take, a kernel's fault: the table says so and goes on.
                    row["error"] = one_line(error)
                yield row


def depthwise_rows(cases: Sequence[Case], device: torch.device, end: float) -> Iterator[dict]:
    """Time torch's depthwise convolution and ours on channels-last maps, forward and with gradients."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    draw = Draw(device, dtype)
    for case in cases:
        problem = case.problem(draw)
        ways = {measured.BEFORE: problem.others["torch nhwc"], measured.AFTER: Formulation(problem.ours)}
        for implementation, way in ways.items():
            row = {"case": str(case), "implementation": implementation, "device": device.type}
            row |= {"kernel": [case.kernel] * 2, "dilation": [case.dilation] * 2}
            row |= {"shape": [case.channels, case.height, case.width], "dtype": str(dtype).removeprefix("torch.")}
            try:
                if time.monotonic() > end:
                    raise TimeoutError("the budget was used up")
                measure_operator(way, problem.inputs, device, row)
            except Exception as error:
                row["error"] = one_line(error)
            yield row


def summary(rows: Sequence[dict], figures: Sequence[str], faster: bool) -> str:
    """Return the rows as a Markdown table with a line for each case: each figure before, after, and the gain.

    Args:
        faster: whether a larger figure is the better one.
    """
    by_case = {(row["case"], row["implementation"]): row for row in rows}
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        before, after = (by_case.get((case, name), {}) for name in (measured.BEFORE, measured.AFTER))
        cells = []
        for figure in figures:
            if figure in before and figure in after:
                gain = after[figure] / before[figure] if faster else before[figure] / after[figure]
                cells.append(f"{before[figure]:.4g}, {after[figure]:.4g}, {gain:.2f}x")
            else:
                cells.append(after.get("error") or before.get("error") or "-")
        lines.append((case, *cells))
    return table(("case", *(f"{figure}: timm, accelerated, gain" for figure in figures)), lines)


def main(words: list[str]) -> None:
    """Run from the command line.

    Errors:
        UserError: a word is not one of the settings, or a value of one not valid.
    """
    settings = {
        "models": ",".join(MODELS),
        "size": "",
        "compile": "",
        "depthwise": "true",
        "warm": "0",
        "budget": "570",
    }
    settings = read_words(words, {**settings, "device": "auto", "out": "benchmarks"}, "benchmark accelerate")
    device = read_device(settings["device"])
    cuda = device.type == "cuda"
    names = read_list("models", settings["models"], timm.list_models())
    asked = settings["size"] or ("" if cuda else "64")
    size = read_number("size", asked, least=32) if asked else None
    sizes = {name: own_size(name) if size is None else size for name in names}
    compilations = read_list(
        "compile", settings["compile"] or ("none,reduce-overhead" if cuda else "none"), COMPILATIONS
    )
    depthwise = read_list("depthwise", settings["depthwise"], ("true", "false"))
    end = time.monotonic() + read_number("budget", settings["budget"], least=0)
    if not names or not compilations or len(depthwise) != 1:
        raise UserError("benchmark accelerate needs models=, compile= and depthwise=true or false")
    out = Path(settings["out"])
    if depthwise == ["true"]:
        cases = DEPTHWISE if cuda else tuple(dict.fromkeys(case.reduced() for case in DEPTHWISE))
        told = partial(summary, figures=("forward_ms", "forward_backward_ms"), faster=False)
        collect(measured.DEPTHWISE, depthwise_rows(cases, device, end), out, device, told)
    processes = read_number("warm", settings["warm"], least=0)
    for compilation in compilations if cuda and processes else ():
        if compilation != "none":
            warm(sizes.items(), list(BATCH), compilation, processes, (AS_IS, ACCELERATED))
    told = partial(summary, figures=("infer_images_per_s", "train_images_per_s"), faster=True)
    collect(measured.MODELS, model_rows(sizes, compilations, device, end), out, device, told)
