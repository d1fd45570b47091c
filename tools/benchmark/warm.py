"""Compile models side by side in processes of their own, whose cached code the measuring process then reads.

python -m saccade.tools.benchmark.warm NAME SIZE COMPILE accelerated|as-is MEASURE...     one step of each measure
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import torch

from .steps import step_of

AS_IS, ACCELERATED = "as-is", "accelerated"


def warm(
    cases: Iterable[tuple[str, int]],
    measures: Sequence[str],
    compilation: str,
    processes: int,
    forms: Sequence[str] = (AS_IS,),
) -> int:
    """Compile models on the GPU, in so many processes at a time; return how many of them failed.

    Args:
        cases: names of models, each with the side of its images.
        forms: "as-is", "accelerated" or both.
    """

    def compiled(what: tuple[tuple[str, int], str]) -> bool:
        (name, size), form = what
        words = [sys.executable, "-m", __name__, name, str(size), compilation, form, *measures]
        return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env).returncode == 0

    # Each would start as many workers as there are cores.
    workers = max(1, (os.cpu_count() or 1) // processes)
    env = {"TORCHINDUCTOR_COMPILE_THREADS": str(workers), **os.environ}
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(compiled, product(cases, forms))).count(False)


def main(words: list[str]) -> None:
    """Run one step of each measure of a model."""
    name, size, compilation, form, *measures = words
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for measure in measures:
        step_of(measure, name, int(size), device, compilation, form == ACCELERATED)()
        torch.compiler.reset()


if __name__ == "__main__":
    main(sys.argv[1:])
