"""`saccade benchmark models`: images per second and memory of whole models, ours beside timm's."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import timm
import torch

from ..errors import UserError
from ..words import read_device, read_list, read_number, read_words
from .attention_share import attention_ms
from .model_marks import MODELS, summary
from .report import collect, one_line
from .steps import BATCH, COMPILATIONS, batch_size, build, step_of
from .timing import call_seconds
from .warm import warm

MEASURES = ("infer", "train", "share")


def rows(
    names: Sequence[str],
    sizes: Sequence[int],
    measures: Sequence[str],
    device: torch.device,
    compilation: str,
    budget: float = float("inf"),
) -> Iterator[dict]:
    """Measure each model at each size; what fails says why in its row.

    Args:
        measures: of "infer", "train" (forward, backward, AdamW step) and "share", attention's share of either.
        compilation: a mode of torch.compile, or "none".
        budget: seconds after which nothing more is begun.
    """
    end = time.monotonic() + budget
    for size in sizes:
        for name in names:
            row = {"case": f"{size} pixels, compile={compilation}", "implementation": name, "size": size}
            # Marks are for compiled models on a GPU.
            row["judged"] = device.type == "cuda" and compilation != "none"
            for measure in measures:
                if time.monotonic() > end:
                    row[f"{measure}_error"] = f"{measure} not measured: budget={budget:g} s was used up"
                    continue
                try:
                    if measure == "share":
                        take_share(row, name, size, device, compilation)
                    else:
                        take_step(row, measure, name, size, device, compilation)
                except Exception as error:
                    row[f"{measure}_error"] = f"{measure}: {one_line(error)}"
                release(device)
            yield row


def release(device: torch.device) -> None:
    """Free what the last model held, its CUDA graphs too: it is not the next one's memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def take_step(
    row: dict,
    measure: str,
    name: str,
    size: int,
    device: torch.device,
    compilation: str,
    accelerated: bool = False,
) -> None:
    """Add to the row the images per second of inference or training, and on a GPU the peak memory."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    step = step_of(measure, name, size, device, compilation, accelerated)
    batch = batch_size(measure, size, device)
    row[f"{measure}_batch"] = batch
    row[f"{measure}_images_per_s"] = batch / call_seconds(step, cuda)
    if cuda:
        row[f"{measure}_peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30


def take_share(row: dict, name: str, size: int, device: torch.device, compilation: str) -> None:
    """Add to the row which share of the steps measured before attention takes; see `attention_share`."""
    model = build(name, size, device)
    for measure in BATCH:
        speed = row.get(f"{measure}_images_per_s")
        if speed is None:
            continue
        batch = row[f"{measure}_batch"]
        images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        model.train(measure == "train")
        row[f"{measure}_attention_ms"] = attention_ms(model, images, measure == "train", compilation != "none")
        row[f"{measure}_attention_share"] = row[f"{measure}_attention_ms"] / 1e3 / (batch / speed)


def main(words: list[str]) -> None:
    """Run from the command line.

    Errors:
        UserError: a word is not one of the settings, or a value of one not valid.
    """
    settings = {"models": ",".join(MODELS), "sizes": "", "modes": "infer,train", "compile": "", "warm": "0"}
    settings = read_words(words, {**settings, "budget": "", "device": "auto", "out": "benchmarks"}, "benchmark models")
    device = read_device(settings["device"])
    cuda = device.type == "cuda"
    names = read_list("models", settings["models"], timm.list_models())
    sizes = [
        read_number("sizes", size, least=32) for size in (settings["sizes"] or ("224" if cuda else "64")).split(",")
    ]
    measures = [measure for measure in MEASURES if measure in read_list("modes", settings["modes"], MEASURES)]
    compilation = read_list("compile", settings["compile"] or (COMPILATIONS[0] if cuda else "none"), COMPILATIONS)
    if not names or not measures or len(compilation) != 1:
        raise UserError("benchmark models needs at least one of models= and of modes=, and one mode of compile=")
    if measures == ["share"]:
        raise UserError("modes=share is not valid: a share is of a step, so add infer or train")
    start = time.monotonic()
    budget = read_number("budget", settings["budget"], least=0) if settings["budget"] else float("inf")
    processes = read_number("warm", settings["warm"], least=0)
    if processes and cuda and compilation != ["none"]:
        steps = [measure for measure in measures if measure in BATCH]
        failed = warm(product(names, sizes), steps, compilation[0], processes)
        print(
            f"compiled in {time.monotonic() - start:.0f} s" + f", {failed} of them in vain" * bool(failed), flush=True
        )
    found = rows(names, sizes, measures, device, compilation[0], budget - (time.monotonic() - start))
    collect("models", found, Path(settings["out"]), device, summary)
