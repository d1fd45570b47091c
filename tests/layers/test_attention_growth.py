"""The cost of the linear mixers grows with the tokens: time and peak memory from 224 to 448 and 896, on a CPU."""

import time
from functools import partial
from itertools import pairwise

import pytest
import torch

from saccade.layers import build_mixer

from ..memory import peak_bytes
from ..speed import least_ms

MIXERS = {"focused": {}, "agent": {"agent_num": 9}, "inline": {}, "gla": {}}
# Maps of a first stage, with stride 4; a doubling of the side is four times the tokens.
SIDES = (56, 112, 224)
LIMIT = 4.6
ROUNDS = 12


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
    # Over both doublings: where a map leaves a cache, one doubling costs more and the other less.
    bound = LIMIT ** (len(SIDES) - 1)
    with torch.inference_mode():
        calls = [partial(mixer, x) for x in maps]
        least = least_ms(calls, lambda least: least[-1] <= bound * least[0], ROUNDS, time.process_time)
    growth = least[-1] / least[0]
    print(f"{name}: {[round(t, 1) for t in least]} ms at sides {SIDES}, {growth:.1f} times, {bound:.1f} allowed")
    assert growth <= bound
