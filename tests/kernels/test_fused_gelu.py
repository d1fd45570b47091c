"""The GELU of fused kernels in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_gelu_is_as_exact_as_float32():
    # Triton decides when it is imported whether it interprets.
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join(filter(None, paths)))
    script = "from gelu_errors import *; check(errors(), at_the_ends())"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
