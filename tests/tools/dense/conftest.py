"""A few shapes, and the toolboxes: what needs them is left out where `make dense` has not installed them."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from saccade.tools.dense.shapes_dataset import Shapes, make_shapes

NEED_TOOLBOXES = [
    "test_benchmark.py",
    "test_config.py",
    "test_importer.py",
    "test_predict.py",
    "test_run.py",
    "test_sampling.py",
]
collect_ignore = [] if find_spec("mmcv") else NEED_TOOLBOXES


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """Eight training and four held-out pictures of 64 x 64."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, Shapes(train=8, val=4, size=64), lambda items, total, name: items)
    return root


@pytest.fixture
def tiny(shapes) -> list[str]:
    """Overrides of either quickstart that make a run of four updates of two pictures, evaluated twice."""
    return [
        f"data.root={shapes}",
        "schedule.iterations=4",
        "schedule.warmup_iterations=1",
        "batch_size=2",
        "run.evaluate_every=2",
        "run.log_every=1",
        "runtime.threads=1",
    ]
