import ctypes
import gc
import os
import sys

import pytest
import torch


def pytest_configure(config):
    """Share the cores among the workers of pytest-xdist: threads that spin for a core make everything slower."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture(autouse=True)
def compiled_code_forgotten():
    """Let each test compile for itself: torch gives up on a function after eight variants, whoever asked for them."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def memory_returned():
    """Give back what a file's models took: else the allocator keeps several GB in each worker."""
    yield
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU library's
        if trim is not None:
            trim(0)
