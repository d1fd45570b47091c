"""`saccade mixers`: parameters, multiply-adds and CPU latency of every mixer in one body."""

from __future__ import annotations

import statistics
import time

import timm
import torch

from ..layers import MIXERS
from .checkpoints import measure
from .engine.modeling import brief, check_carries_mixers
from .errors import UserError
from .words import read_words

SETTINGS = {"body": "pyramid_tiny", "size": "224", "batch": "1", "repeats": "5"}


def latency(model: torch.nn.Module, images: torch.Tensor, repeats: int) -> float:
    """Return the median time of a forward pass, in milliseconds, after one that warms up."""
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model(images)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


def row(body: str, mixer: str, size: int, batch: int, repeats: int) -> str:
    """Return the figures of one mixer, aligned below the header."""
    options = {"mixer": mixer, "img_size": size}
    parameters, macs = measure(body, (3, size, size), 1000, **options)
    torch.manual_seed(0)
    milliseconds = latency(timm.create_model(body, **options).eval(), torch.randn(batch, 3, size, size), repeats)
    return f"{parameters / 1e6:9.2f} M  {macs / 1e9:8.3f} G  {milliseconds:9.1f}"


def main(words: list[str]) -> int:
    settings = read_words(words, SETTINGS, "saccade mixers")
    body = settings.pop("body")
    check_carries_mixers(body)
    for key, value in settings.items():
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"{key}={value} is not valid: give a whole number, at least 1")
    size, batch, repeats = (int(value) for value in settings.values())

    print(
        f"{body}, {size}x{size}, batch {batch}, float32, {torch.get_num_threads()} CPU threads, torch "
        f"{torch.__version__}; MACs of one image, latency of the batch, median of {repeats}"
    )
    width = max(map(len, MIXERS))
    print(f"{'mixer':{width}}  {'parameters':>11}  {'MACs':>10}  {'ms':>9}")
    failed = 0
    for mixer in sorted(MIXERS):
        try:
            told = row(body, mixer, size, batch, repeats)
        except Exception as error:
            failed += 1
            told = f"failed: {type(error).__name__}: {brief(error)}"
        print(f"{mixer:{width}}  {told}", flush=True)
    print(f"{len(MIXERS)} mixers" + (f", of which {failed} failed" if failed else ""))
    return int(failed > 0)
