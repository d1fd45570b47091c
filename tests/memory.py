"""The memory that a call takes on a CPU."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[..., Any], *inputs: Any) -> int:
    """Return the most memory that a call holds at a time beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        function(*inputs)
    held = peak = 0
    for event in sorted(run.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
