"""A run killed in mid-epoch and continued ends exactly where an unbroken one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.tools.engine.checkpoint import CheckpointStore

EVERYTHING = [  # that draws random numbers or keeps state
    "augment=imagenet",
    "model.drop_path_rate=0.3",
    "model.drop_rate=0.1",
    "optimizer.ema_decay=0.9",
    "optimizer.ema_warmup=true",
    "optimizer.layer_decay=0.9",
    "schedule.epochs=4",
    "schedule.warmup_epochs=1",
    "batch_size=8",
    "runtime.max_batch_per_process=4",
    "run.checkpoint_every=1",
]


def same(one: Any, two: Any) -> bool:
    """Whether nested containers of tensors and numbers are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def assert_same_end(one: Path, two: Path) -> None:
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    for name in ("last", "best"):
        first, second = CheckpointStore(one).find(name), CheckpointStore(two).find(name)
        assert first.path.name == second.path.name
        for file in ("model.safetensors", "ema.safetensors", "checkpoint.json"):
            assert (first.path / file).read_bytes() == (second.path / file).read_bytes(), file
        before, after = first.training_state(), second.training_state()
        for state in (before, after):
            del state["progress"]["throughput"]  # seconds, which no one can repeat
        for part in before:
            assert same(before[part], after[part]), part


def kill_in_epoch(words: list[str], run: Path, epoch: int) -> None:
    """Start a run in a process of its own and kill it once it has saved in the middle of this epoch."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "saccade.tools", "train", *words, f"run.dir={run}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        cwd=run.parent,
    )
    last, give_up = run / "checkpoints" / "last", time.monotonic() + 300
    try:
        while True:
            name = os.readlink(last) if last.is_symlink() else ""
            if name.startswith(f"epoch-{epoch:04d}-update"):
                break
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < give_up, "it never saved in the middle of that epoch"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert CheckpointStore(run).find("last").summary()["epoch"] < 4, "killed too late to matter"


def test_killed_and_resumed_is_unbroken(saccade, small, tmp_path):
    words = [*small, *EVERYTHING]
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert saccade("train", *words, f"run.dir={unbroken}").code == 0

    kill_in_epoch(words, killed, epoch=1)
    outcome = saccade("train", f"run.dir={killed}", "resume=auto", "data.workers=1")
    assert outcome.code == 0 and "resumed from" in outcome.out, outcome.err
    assert_same_end(unbroken, killed)
    leftovers = [path.name for path in (killed / "checkpoints").iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_resume_finds_its_run(saccade, small, tmp_path):
    """auto: the run directory, else the newest run, else a new one; a path: a run or one of its checkpoints."""
    words = [*small, "schedule.epochs=2"]
    assert "starting a new run" in saccade("train", *words, "resume=auto").out
    (run,) = (tmp_path / "runs" / "classification" / "quickstart").iterdir()
    metrics = (run / "metrics.csv").read_bytes()
    assert "resumed from" in saccade("train", "resume=auto").out
    assert (run / "metrics.csv").read_bytes() == metrics
    assert len(list(run.parent.iterdir())) == 1

    (run / "metrics.csv").unlink()
    assert saccade("train", f"resume={run}").code == 0
    assert (run / "metrics.csv").read_bytes() == metrics
    best = run / "checkpoints" / "best"
    assert f"resumed from {best.resolve()}" in saccade("train", f"resume={best}").out
    assert (run / "metrics.csv").read_bytes() == metrics

    assert "starting a new run" in saccade("train", *words, "resume=auto", "run.dir=named").out
    assert "resumed from" in saccade("train", *words, "resume=auto", "run.dir=named").out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_run_goes_on_where_it_was(saccade, small, tmp_path):
    """Not on the device that the recipe of this command line happens to name."""
    assert saccade("train", *small, "schedule.epochs=1", "run.dir=run").code == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    for words in (("train", "run.dir=run", "resume=auto"), ("evaluate", "checkpoint=run")):
        outcome = saccade(*words)
        assert outcome.code == 1 and "runtime.device=cuda" in outcome.err
    assert saccade("evaluate", "checkpoint=run", "runtime.device=cpu").code == 0
