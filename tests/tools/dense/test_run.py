"""Training and evaluation of detectors and segmentors: files, exact continuation, several processes, bad input."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from saccade.tools.dense.record import Record
from saccade.tools.engine.checkpoint import CheckpointStore

FILES = {"config.yaml", "environment.json", "metrics.csv", "throughput.csv", "curves.png", "log.txt", "checkpoints"}


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def same_end(one: Path, two: Path) -> bool:
    files = [
        (run / "metrics.csv").read_bytes() + CheckpointStore(run).find("last").model.read_bytes() for run in (one, two)
    ]
    return files[0] == files[1]


def test_segmentation_trains_and_evaluates(saccade, tiny, tmp_path):
    outcome = saccade("train", "segmentation/quickstart", *tiny, "run.dir=run", "logger=[tensorboard,wandb]")
    assert outcome.code == 0 and outcome.err == ""
    lines = outcome.out.splitlines()
    assert re.match(
        r"EncoderDecoder on nat_nano: 0\.\d+ M parameters; 8 training and 4 held-out images; "
        r"batch 2 = 1 processes x 1 steps x 2; 4 updates",
        lines[0],
    )
    assert re.match(r"update 1/4  loss \d+\.\d+  lr \S+  \d+\.\d images/s", lines[1])
    assert re.match(r"update 2/4  loss .* mIoU \d+\.\d", lines[2])
    assert re.match(r"best: mIoU \d+\.\d  mean accuracy \d+\.\d at update [24] of 4", lines[5])
    assert "evaluate: saccade evaluate checkpoint=run" in lines[-1]

    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= FILES | {"tensorboard", "wandb", "mmengine.py"}
    assert not [name for name in names if re.match(r"\d{8}_", name)], "mmengine's own folder"
    table = rows(run)
    assert [row["updates"] for row in table] == ["1", "2", "3", "4"] and list(table[0])[:3] == [
        "updates",
        "lr",
        "train_loss",
    ]
    assert [bool(row["miou"]) for row in table] == [False, True, False, True]
    assert float(table[0]["train_loss"]) == pytest.approx(float(table[0]["train_decode.loss_ce"]))
    log = (run / "log.txt").read_text()
    assert all(line in log for line in lines[:5]) and "Hooks will be executed" in log, "our lines, and the toolbox's"
    (start,) = json.loads((run / "environment.json").read_text())
    assert start["recipe"] == "segmentation/quickstart" and start["packages"]["onedl-mmsegmentation"]

    best = max(table, key=lambda row: float(row["miou"] or -1))
    outcome = saccade("evaluate", "checkpoint=run")
    assert outcome.code == 0 and outcome.err == ""
    shown = f"mIoU {float(best['miou']):.1f}  mean accuracy {float(best['macc']):.1f}"
    assert f"on 4 images of {tiny[0].partition('=')[2]}: {shown}" in outcome.out
    assert f"recorded in training: update {best['updates']}, {shown}" in outcome.out
    assert {path.name for path in run.iterdir()} == names, "evaluation leaves no files"


def test_detection_trains_by_epoch_and_evaluates(saccade, tiny, tmp_path):
    words = [
        *tiny[:1],
        "schedule=1x",
        "schedule.iterations=null",
        "schedule.epochs=2",
        "schedule.milestones=[1]",
        "schedule.warmup_iterations=2",
    ]
    words += ["batch_size=2", "run.evaluate_every=2", "run.log_every=3", "runtime.threads=1"]
    words += ["+detector.changes.test_cfg.rcnn.score_thr=0"]
    outcome = saccade("train", "detection/quickstart", *words, "run.dir=run")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith("MaskRCNN on nat_nano")
    table = rows(tmp_path / "run")
    assert [row["updates"] for row in table] == ["3", "4", "6", "8"], "every third, and the ends of the epochs"
    assert float(table[1]["lr"]) == pytest.approx(10 * float(table[3]["lr"]), rel=1e-3)
    assert [row["box_ap"] != "" for row in table] == [False, False, False, True] and table[3]["mask_ap50"] != ""
    assert {"train_loss_rpn_cls", "train_loss_bbox", "train_loss_mask"} <= table[0].keys()
    outcome = saccade("evaluate", "detection/quickstart", "checkpoint=run")
    assert (
        outcome.code == 0 and outcome.err == "" and f"box AP {float(table[3]['box_ap']):.1f}  box AP50" in outcome.out
    )


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ("segmentation/quickstart", ["run.checkpoint_every=1"]),
        (
            "detection/quickstart",
            [
                "schedule=1x",
                "schedule.iterations=null",
                "schedule.epochs=2",
                "run.checkpoint_every=3",
                "run.evaluate_every=1",
            ],
        ),
    ],
)
def test_interrupted_and_resumed_is_unbroken(saccade, tiny, tmp_path, monkeypatch, recipe, kind):
    """In the middle of an epoch too, and with other numbers of loader processes."""
    words = [*tiny, *kind, "model.drop_path_rate=0.2"]
    if "schedule=1x" in kind:
        words.remove("schedule.iterations=4")
    assert saccade("train", recipe, *words, "run.dir=unbroken").code == 0

    save, saved = Record._save, []

    def save_and_stop(self, runner, iteration, epoch, best):
        save(self, runner, iteration, epoch, best)
        saved.append(iteration)
        if iteration == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "_save", save_and_stop)
        assert saccade("train", recipe, *words, "run.dir=stopped").code == 130
    outcome = saccade("train", "resume=stopped", "data.workers=1", "logger=csv")  # a run knows its recipe
    assert outcome.code == 0 and "resumed from" in outcome.out, outcome.err
    assert saved[-1] == 3 and same_end(tmp_path / "unbroken", tmp_path / "stopped")
    starts = json.loads((tmp_path / "stopped" / "environment.json").read_text())
    assert [start["recipe"] for start in starts] == [recipe, recipe]
    assert saccade("train", recipe, "resume=unbroken", "optimizer.lr=1").err.startswith(
        "saccade: cannot resume unbroken"
    )


def test_killed_and_resumed_is_unbroken(saccade, tiny, tmp_path):
    words = ["train", "segmentation/quickstart", *tiny, "schedule.iterations=12", "run.checkpoint_every=1"]
    run = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "saccade.tools", *words, f"run.dir={run}"], stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        give_up = time.monotonic() + 200
        while not (run / "checkpoints" / "last").is_symlink():
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = CheckpointStore(run).find("last").summary()["update"]
    assert 0 < before < 12, "killed too late to matter"
    assert saccade(*words, f"run.dir={run}", "resume=auto").code == 0
    assert saccade(*words, "run.dir=unbroken").code == 0
    assert same_end(run, tmp_path / "unbroken")


def test_two_processes_equal_one(saccade, tiny, tmp_path):
    words = ["train", "segmentation/quickstart", *tiny]
    for part in ("neck", "decode_head"):  # unlike batch norm, group norm is the same whoever holds the other pictures
        norm = f"segmentor.changes.{part}.norm_cfg"
        words += [f"{norm}.type=GN", f"+{norm}.num_groups=8"]
    assert saccade(*words, "run.dir=one").code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "saccade.tools"]
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "cwd": tmp_path, "capture_output": True, "text": True}
    answer = subprocess.run([*command, *words, "run.dir=two"], **options, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("batch 2 = 2 processes x 1 steps x 1") == 1, "the first process speaks for all"
    for row, other in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-3)
        assert row["miou"] == "" or float(row["miou"]) == pytest.approx(float(other["miou"]), abs=0.1)
    first, second = (load_file(CheckpointStore(tmp_path / name).find("last").model) for name in ("one", "two"))
    assert max((first[key].float() - second[key].float()).abs().max().item() for key in first) < 2e-2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(saccade, tiny, shapes, tmp_path, workers):
    root = tmp_path / "damaged"
    shutil.copytree(shapes, root)
    (damaged,) = (root / "images" / "training").glob("*_00000005.jpg")
    damaged.write_bytes(damaged.read_bytes()[:100])
    words = [*tiny, f"data.root={root}", f"data.workers={workers}", "run.dir=run"]
    outcome = saccade("train", "segmentation/quickstart", *words)
    assert outcome.code == 1 and str(damaged) in outcome.err and outcome.err.count("\n") == 1, outcome.err


@pytest.mark.parametrize(
    ("recipe", "words", "told"),
    [
        ("segmentation", ["data.root=nowhere", "data.make=null"], "data.root=nowhere is no folder"),
        (
            "detection",
            ["data.root=.", "data.make=null"],
            "data.root=. has no annotations/instances_train2017.json and no",
        ),
        ("detection", ["data.make=squares"], "data.make=squares is not valid: choose from shapes"),
        ("segmentation", ["model.name=nat_nono"], "did you mean nat_nano"),
        ("segmentation", ["+segmentor.changes.decode_head.type=FPNHat"], "the toolboxes reject this recipe: "),
        ("segmentation", ["resume=nowhere"], "resume=nowhere: no such directory"),
    ],
)
def test_bad_input_is_told_in_one_line(saccade, tiny, tmp_path, recipe, words, told):
    outcome = saccade("train", f"{recipe}/quickstart", *tiny, *words)
    assert outcome.code == 1 and told in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert list(tmp_path.iterdir()) == []
