"""Times on a CPU, side by side."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

BATCH, SIZE, ROUNDS, LOOKS = 8, 224, 7, 5
NOISE = 1.05


def least_ms(
    calls: Sequence[Callable[[], object]],
    settled: Callable[[list[float]], bool],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the least time of each call, the calls taking turns.

    What else a machine does only ever adds time, for minutes at that: while the times are not `settled`, look longer.
    """
    for call in calls:
        call()
    least = [math.inf for _ in calls]
    for _ in range(LOOKS):
        for _ in range(rounds):
            for index, call in enumerate(calls):
                start = clock()
                call()
                least[index] = min(least[index], 1e3 * (clock() - start))
        if settled(least):
            break
    return least


def assert_no_slower(ours: nn.Module, theirs: nn.Module, name: str, bound: float = NOISE) -> None:
    """Check that a model takes at most `bound` times as long for a batch of images as another."""
    image = torch.randn(BATCH, 3, SIZE, SIZE)
    with torch.inference_mode():
        calls = [partial(model.eval(), image) for model in (ours, theirs)]
        mine, other = least_ms(calls, lambda least: least[0] <= bound * least[1])
    print(f"{name}, {BATCH} images: {mine:.0f} ms, beside it {other:.0f} ms")
    assert mine <= bound * other


def assert_same_and_no_slower(ours: nn.Module, plain: nn.Module, name: str) -> None:
    """Check that two modules of the same weights give the same logits, and that ours takes no longer for them."""
    image = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(image), plain.eval()(image), rtol=1e-4, atol=1e-4)
    assert_no_slower(ours, plain, name)
