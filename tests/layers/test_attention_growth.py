"""The cost of the linear mixers grows with the tokens: time and peak memory from 224 to 448 and 896, on a CPU."""

import math
import time
from itertools import pairwise

import pytest
import torch

from saccade.layers import build_mixer

from ..memory import peak_bytes

MIXERS = {"focused": {}, "agent": {"agent_num": 9}, "inline": {}, "gla": {}}
# Maps of a first stage, with stride 4; a doubling of the side is four times the tokens.
SIDES = (56, 112, 224)
LIMIT = 4.6
ROUNDS, LOOKS = 12, 5


def first_stage(name: str) -> torch.nn.Module:
    """Return a mixer as in the first stage of a Swin host, its tables made for images of 224."""
    return build_mixer(name, 96, 3, {"grid": 56}, **MIXERS[name]).eval()


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_peak_memory(name, train):
    mixer = first_stage(name)
    peaks = []
    for side in SIDES:
        x = torch.randn(1, side, side, 96)
        with torch.set_grad_enabled(train):
            peaks.append(peak_bytes(lambda x: mixer(x).sum().backward() if train else mixer(x), x))
    tokens = [4 * 96 * side**2 for side in SIDES]
    print(f"{name}, train={train}: peak of {[round(peak / n, 1) for peak, n in zip(peaks, tokens, strict=True)]} maps")
    assert peaks[0] > tokens[0]
    assert all(large <= LIMIT * small for small, large in pairwise(peaks))


@pytest.mark.speed
@pytest.mark.parametrize("name", MIXERS)
def test_time(name):
    mixer = first_stage(name)
    maps = [torch.randn(1, side, side, 96) for side in SIDES]
    taken = [[] for _ in maps]
    with torch.inference_mode():
        for x in maps:
            mixer(x)
        # What else a machine does only ever adds time, for minutes at that: look longer before saying that it is ours.
        for _ in range(LOOKS):
            for _ in range(ROUNDS):
                for x, times in zip(maps, taken, strict=True):
                    start = time.process_time()
                    mixer(x)
                    times.append(time.process_time() - start)
            least = [min(times) for times in taken]
            growth = [large / small for small, large in pairwise(least)]
            # Over both doublings: where a map leaves a cache, one doubling costs more and the other less.
            if math.prod(growth) <= LIMIT ** len(growth):
                break
    print(f"{name}: {[round(1e3 * t, 1) for t in least]} ms at sides {SIDES}, growth {[round(g, 2) for g in growth]}")
    assert math.prod(growth) <= LIMIT ** len(growth)
