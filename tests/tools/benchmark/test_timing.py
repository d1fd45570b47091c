"""Timing on a GPU, with a pretended one whose calls take a second of a pretended clock."""

from contextlib import contextmanager

import pytest
import torch

from saccade.tools.benchmark.timing import SLOW_MS, CaptureError, call_seconds, device_time

CUDA = torch.device("cuda")


class PretendedGPU:
    """Runs what is called at once, or when its graph is replayed; `now` is its clock in milliseconds."""

    def __init__(self):
        self.now, self.calls, self.capturing = 0.0, 0, None

    def kernel(self, milliseconds):
        def launch():
            if self.capturing is not None:
                self.capturing.append(launch)
                return
            self.calls += 1
            self.now += milliseconds

        return launch

    def sync(self):
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    def install(self, monkeypatch):
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = gpu.now

            def synchronize(self):
                gpu.sync()

            def elapsed_time(self, end):
                return end.at - self.at

        class Graph:
            def __init__(self):
                self.launches = []

            def replay(self):
                for launch in self.launches:
                    launch()

        @contextmanager
        def capture(graph):
            gpu.capturing = graph.launches
            try:
                yield
            finally:
                gpu.capturing = None

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "synchronize", self.sync)


@pytest.fixture
def gpu(monkeypatch):
    pretended = PretendedGPU()
    pretended.install(monkeypatch)
    return pretended


def test_replays_are_timed(gpu):
    assert device_time(gpu.kernel(2.0), CUDA, calls=4, repeats=5) == 2.0
    # Three calls to warm up, one replay more, and five that are timed.
    assert gpu.calls == 3 + 6 * 4


def test_slow_calls_are_few_and_launched(gpu):
    assert device_time(gpu.kernel(2 * SLOW_MS), CUDA) == 2 * SLOW_MS
    assert gpu.calls == 5


def test_what_cannot_be_captured(gpu):
    launch = gpu.kernel(3.0)

    def call():
        launch()
        gpu.sync()

    with pytest.raises(CaptureError, match="not permitted"):
        device_time(call, CUDA)
    assert device_time(call, CUDA, graph=False) == 3.0


def test_errors_of_the_call_are_its_own(gpu):
    def call():
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        device_time(call, CUDA)


def test_a_cpu_is_timed_by_the_clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def call():
        clock[0] += 0.25

    assert device_time(call, torch.device("cpu")) == 250.0
    assert call_seconds(call, cuda=False) == 0.25
