import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill fresh memory with NaN, so that an element that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
