"""How long a call takes: alone on the device, or in a row of calls as in training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

SLOW_MS = 20.0
"""What takes longer than this is repeated less often, and launched as it is: a launch is nothing beside it."""


class CaptureError(RuntimeError):
    """A function that runs could not be captured as a CUDA graph."""


def device_time(
    function: Callable[[], object], device: torch.device, calls: int = 5, repeats: int = 15, graph: bool = True
) -> float:
    """Return the median time of a call in milliseconds: of CUDA graph replays, or by the clock on a CPU.

    Args:
        calls: how many calls a replay makes.
        graph: without, calls are launched one by one, so a quick one takes as long as its launch.

    Raises:
        CaptureError: the function runs, but not as a CUDA graph.
    """
    if device.type != "cuda":
        return statistics.median(_clock(function) for _ in range(repeats // 5 + 1)) * 1e3
    function()
    torch.cuda.synchronize()
    if _between_events(function) > SLOW_MS:
        return statistics.median(_between_events(function) for _ in range(repeats // 5))
    function()
    torch.cuda.synchronize()
    run = _captured(function, calls) if graph else _in_a_row(function, calls)
    run()
    return statistics.median(_between_events(run) / calls for _ in range(repeats))


def _captured(function: Callable[[], object], calls: int) -> Callable[[], object]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                function()
    except RuntimeError as error:
        torch.cuda.synchronize()
        raise CaptureError(str(error)) from error
    return graph.replay


def _in_a_row(function: Callable[[], object], calls: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(calls):
            function()

    return run


def _between_events(function: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _clock(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def call_seconds(function: Callable[[], object], cuda: bool) -> float:
    """Return the seconds of a call in a row of calls, as in training, after warming up; the median of three rows."""
    warm, calls = (5, 20) if cuda else (1, 1)
    for _ in range(warm):
        function()
    in_a_row = _in_a_row(function, calls)

    def row() -> None:
        in_a_row()
        if cuda:
            torch.cuda.synchronize()

    if cuda:
        torch.cuda.synchronize()
    return statistics.median(_clock(row) for _ in range(3)) / calls
