"""Random numbers: seeded at the start, derived from a position where that must not depend on history, saved and
restored where it may."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

ORDER, SAMPLE, BATCH, PROCESS = 1, 2, 3, 4  # what a derived seed is for: keeps equal positions of different kinds apart


def derive_seed(*position: int) -> int:
    """A 64-bit seed for a position, such as (seed, SAMPLE, epoch, index): the same everywhere, unrelated to others."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0])


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's CPU generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


def seed_everything(seed: int, rank: int, deterministic: bool) -> None:
    """Seed all generators of one process and, if wanted, ask PyTorch for deterministic kernels."""
    derived = derive_seed(seed, PROCESS, rank)
    seed_generators(derived)
    torch.cuda.manual_seed(derived % 2**63)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic


def generator_states(device: torch.device) -> dict[str, Any]:
    """The state of every generator of this process, in types that `torch.load(weights_only=True)` reads."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    """Put every generator of this process back into a state that `generator_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def generators_kept(device: torch.device | None = None) -> Iterator[None]:
    """Leave the generators (the CPU's, and `device`'s if it is a GPU) as they were found."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
