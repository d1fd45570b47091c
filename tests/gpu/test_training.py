"""The training engine on a GPU: mixed precision, and a killed run that goes on."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

WORDS = [
    "runtime.device=cuda",
    "runtime.channels_last=true",
    "runtime.deterministic=true",
    "model.name=resnet10t",
    "augment=imagenet",
    "optimizer.ema_decay=0.9",
    "schedule.epochs=3",
    "run.checkpoint_every=5",
    "batch_size=64",
    "data.workers=2",
]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "saccade.tools", *words]


def run(*words: str, cwd) -> str:
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    answer = subprocess.run(command(*words), cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_learns(precision, tmp_path):
    words = ["runtime.device=cuda", f"runtime.precision={precision}", "schedule.epochs=3", "run.dir=run"]
    run("train", *words, cwd=tmp_path)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert float(rows[-1]["top1"]) > 80
    assert f"top-1 {float(max(rows, key=lambda row: float(row['top1']))['top1']):.2f}" in run(
        "evaluate", "checkpoint=run", cwd=tmp_path
    )


def test_killed_and_resumed_is_unbroken(tmp_path):
    run("train", *WORDS, "run.dir=unbroken", cwd=tmp_path)
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    process = subprocess.Popen(
        command("train", *WORDS, "run.dir=killed"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    last, give_up = tmp_path / "killed" / "checkpoints" / "last", time.monotonic() + 240
    while not (last.is_symlink() and os.readlink(last).startswith("epoch-0001-update")):
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "resumed from" in run("train", "run.dir=killed", "resume=auto", cwd=tmp_path)
    one, two = (tmp_path / name for name in ("unbroken", "killed"))
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    for file in ("model.safetensors", "ema.safetensors"):
        assert (one / "checkpoints/last" / file).read_bytes() == (two / "checkpoints/last" / file).read_bytes()
