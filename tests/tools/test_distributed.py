"""Two processes make the same updates and the same evaluation as one."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file


def torchrun(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "saccade.tools",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *words], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_two_processes_equal_one(saccade, small, tmp_path):
    words = [*small, "optimizer=sgd", "optimizer.lr=0.05", "model.drop_path_rate=0", "optimizer.ema_decay=0.9"]
    assert saccade("train", *words, f"run.dir={tmp_path / 'one'}").code == 0
    answer = torchrun("train", *words, f"run.dir={tmp_path / 'two'}", "runtime.max_batch_per_process=2", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("batch 8 = 2 processes x 2 steps x 2") == 1  # printed by the first process only

    one, two = (list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row["top1"] == other["top1"] and row["ema_top1"] == other["ema_top1"]
        for name in ("train_loss", "loss", "ema_loss"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4)
    for file in ("model.safetensors", "ema.safetensors"):
        first, second = (load_file(tmp_path / name / "checkpoints" / "last" / file) for name in ("one", "two"))
        assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-4

    # 15 held-out images over two processes, each counted once; the run was trained by two and is evaluated by one
    answer = torchrun("evaluate", "checkpoint=two", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    alone = saccade("evaluate", "checkpoint=two").out
    pattern = r"on 15 images of .* top-1 (\S+)  top-5 (\S+)  loss (\S+)"
    assert re.search(pattern, answer.stdout).groups() == re.search(pattern, alone).groups()
    assert f"top-1 {float(max(two, key=lambda row: float(row['ema_top1']))['ema_top1']):.2f}" in alone


def test_errors_are_told_once(small, tmp_path):
    answer = torchrun("train", *small, "batch_size=9", cwd=tmp_path)
    assert answer.returncode != 0
    assert answer.stderr.count("saccade: batch_size=9 does not divide over 2 processes: 8 or 10 would") == 1
    assert not (tmp_path / "runs").exists()
