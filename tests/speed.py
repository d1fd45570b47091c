"""A model against the official module graph of plain torch modules, on a CPU."""

import time

import torch
from torch import nn

BATCH, SIZE, REPEATS = 8, 224, 7
NOISE = 1.05


def assert_no_slower(ours: nn.Module, plain: nn.Module, name: str) -> None:
    """Check that two modules of the same weights give the same logits, and that ours takes no longer for them."""
    image = torch.randn(BATCH, 3, SIZE, SIZE)
    times: dict[nn.Module, list[float]] = {ours.eval(): [], plain.eval(): []}
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), plain(image), rtol=1e-4, atol=1e-4)
        for _ in range(REPEATS):
            for model, taken in times.items():
                start = time.perf_counter()
                model(image)
                taken.append(time.perf_counter() - start)
    mine, theirs = (sorted(taken)[REPEATS // 2] * 1e3 for taken in times.values())
    print(f"{name}, {BATCH} images: {mine:.0f} ms, plain modules {theirs:.0f} ms")
    assert mine <= NOISE * theirs
