"""Times of models on a CPU, side by side."""

import time

import torch
from torch import nn

BATCH, SIZE, REPEATS = 8, 224, 7
NOISE = 1.05


def median_ms(*models: nn.Module) -> list[float]:
    """Return the median time of each model for one batch of images, the models taking turns."""
    image = torch.randn(BATCH, 3, SIZE, SIZE)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            model.eval()(image)
        for _ in range(REPEATS):
            for model, taken in zip(models, times, strict=True):
                start = time.perf_counter()
                model(image)
                taken.append(time.perf_counter() - start)
    return [sorted(taken)[REPEATS // 2] * 1e3 for taken in times]


def assert_no_slower(ours: nn.Module, plain: nn.Module, name: str) -> None:
    """Check that two modules of the same weights give the same logits, and that ours takes no longer for them."""
    image = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(image), plain.eval()(image), rtol=1e-4, atol=1e-4)
    mine, theirs = median_ms(ours, plain)
    print(f"{name}, {BATCH} images: {mine:.0f} ms, plain modules {theirs:.0f} ms")
    assert mine <= NOISE * theirs
