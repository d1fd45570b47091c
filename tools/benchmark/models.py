"""`saccade benchmark models`: images per second and memory of whole models, ours beside timm's."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..errors import UserError
from .attention_share import attention_ms
from .model_marks import MODELS, summary
from .report import collect, one_line
from .settings import read_device, read_list, read_number, read_words
from .timing import call_seconds

MEASURES = ("infer", "train", "share")
# With CUDA graphs ("reduce-overhead") a fast GPU does not wait for the CPU to launch kernels.
COMPILATIONS = ("reduce-overhead", "default", "max-autotune", "none")
BATCH = {"infer": 256, "train": 128}
"""Images of 224 pixels; of others as many as have the same number of pixels."""


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
                # What one model holds, its CUDA graphs too, is not the next one's memory.
                torch.compiler.reset()
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            yield row


def batch_size(measure: str, size: int, device: torch.device) -> int:
    """Return how many images of that size a step takes."""
    return max(1, BATCH[measure] * 224**2 // size**2) if device.type == "cuda" else 2


def build(name: str, size: int, device: torch.device) -> nn.Module:
    """Return an untrained model for images of that size."""
    cfg = timm.get_pretrained_cfg(name)
    fixed = cfg is not None and cfg.fixed_input_size and cfg.input_size[-1] != size
    model = timm.create_model(name, **({"img_size": size} if fixed else {}))
    for module in model.modules():
        # Not the whole model: other parameters may have five dimensions, which that format refuses.
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return model.to(device)


def take_step(row: dict, measure: str, name: str, size: int, device: torch.device, compilation: str) -> None:
    """Add to the row the images per second of inference or training, and on a GPU the peak memory."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    model = build(name, size, device)
    batch = batch_size(measure, size, device)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    call = model if compilation == "none" else torch.compile(model, mode=compilation, dynamic=False)
    step = (inference if measure == "infer" else training)(model, call, images)
    row[f"{measure}_batch"] = batch
    row[f"{measure}_images_per_s"] = batch / call_seconds(step, cuda)
    if cuda:
        row[f"{measure}_peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30


def inference(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    """Return a step of inference under bfloat16 autocast."""
    model.eval()

    def step() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
            return call(images)

    return step


def training(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    """Return a step of training under bfloat16 autocast: forward, backward, AdamW."""
    model.train()
    labels = torch.randint(0, 1000, images.shape[:1], device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=images.is_cuda)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(call(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


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
    settings = {"models": ",".join(MODELS), "sizes": "", "modes": "infer,train", "compile": "", "budget": ""}
    settings = read_words(words, {**settings, "device": "auto", "out": "benchmarks"}, "models")
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
    budget = read_number("budget", settings["budget"], least=0) if settings["budget"] else float("inf")
    found = rows(names, sizes, measures, device, compilation[0], budget)
    collect("models", found, Path(settings["out"]), device, summary)
