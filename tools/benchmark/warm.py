"""Compile models side by side in processes of their own, whose cached code the measuring process then reads.

python -m saccade.tools.benchmark.warm NAME SIZE COMPILE MEASURE...     a process: one step of each measure
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import torch

from .steps import step_of


def warm(names: Sequence[str], sizes: Sequence[int], measures: Sequence[str], compilation: str, processes: int) -> int:
    """Compile each model for each size on the GPU, in so many processes at a time; return how many of them failed."""

    def compiled(what: tuple[str, int]) -> bool:
        name, size = what
        words = [sys.executable, "-m", __name__, name, str(size), compilation, *measures]
        return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(compiled, product(names, sizes))).count(False)


def main(words: list[str]) -> None:
    """Run one step of each measure of a model."""
    name, size, compilation, *measures = words
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for measure in measures:
        step_of(measure, name, int(size), device, compilation)()
        torch.compiler.reset()


if __name__ == "__main__":
    main(sys.argv[1:])
