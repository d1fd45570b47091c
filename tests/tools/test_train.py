"""What a run leaves behind, and every option of the engine at work."""

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
import yaml

from saccade.tools.engine.checkpoint import CheckpointStore


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "model.safetensors").read_bytes()


@pytest.fixture
def trained(saccade, small, tmp_path):
    """Train with extra words in a directory of that name and return the run."""

    def train(name: str, *words: str) -> Path:
        outcome = saccade("train", *small, *words, f"run.dir={tmp_path / name}")
        assert outcome.code == 0, outcome.err
        return tmp_path / name

    return train


def test_run_directory(saccade, small, tmp_path):
    outcome = saccade("train", *small)
    assert (outcome.code, outcome.err) == (0, "")
    (run,) = (tmp_path / "runs" / "classification" / "quickstart").iterdir()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # no outputs/, no multirun/
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "curves.png",
        "environment.json",
        "log.txt",
        "metrics.csv",
        "throughput.csv",
    }
    assert str(run.relative_to(tmp_path)) in outcome.out and "images/s" in outcome.out
    assert (run / "log.txt").read_text().splitlines()[0] in outcome.out
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["batch_size"] == 8 and config["model"]["name"] == "nat_nano" and config["data"]["kind"] == "folder"
    (start,) = json.loads((run / "environment.json").read_text())
    assert start["packages"]["torch"] == torch.__version__.split("+")[0] and start["packages"]["timm"]
    assert start["command"][:2] == ["saccade", "train"] and start["git_revision"] is not False

    first, second = rows(run)
    assert (first["epoch"], first["updates"], second["updates"]) == ("1", "6", "12")
    assert float(first["train_loss"]) > 0 and 0 <= float(second["top1"]) <= float(second["top5"]) == 100
    last = CheckpointStore(run).find("last")
    assert last.path.name == "epoch-0002" and last.summary()["metrics"]["top1"] == float(second["top1"])
    model = timm.create_model("nat_nano", num_classes=3, checkpoint_path=str(last.model))
    assert model.num_classes == 3


def test_second_run_has_the_same_numbers(trained):
    words = ["model.drop_path_rate=0.3", "augment=imagenet", "data.workers=1"]
    one, two = trained("one", *words), trained("two", *words)
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    assert weights(one) == weights(two)
    assert weights(trained("three", *words, "seed=43")) != weights(one)


def test_workers_and_evaluation_do_not_change_training(trained):
    words = ["model.drop_path_rate=0.3", "augment=imagenet"]
    expected = weights(trained("plain", *words))
    assert weights(trained("workers", *words, "data.workers=2")) == expected
    assert (
        weights(trained("rare", *words, "run.evaluate_every=2", "run.log_every=1", "run.checkpoint_every=1"))
        == expected
    )


def test_accumulation_is_the_same_update(trained):
    words = ["optimizer=sgd", "optimizer.lr=0.05", "model.drop_path_rate=0", "augment.label_smoothing=0"]
    whole, parts = trained("whole", *words), trained("parts", *words, "runtime.max_batch_per_process=2")
    assert "batch 8 = 1 processes x 4 steps x 2" in (parts / "log.txt").read_text()
    for one, two in zip(rows(whole), rows(parts), strict=True):
        assert float(one["train_loss"]) == pytest.approx(float(two["train_loss"]), rel=1e-4)
        assert one["top1"] == two["top1"]


@pytest.mark.parametrize(
    "words",
    [
        ["runtime.precision=bfloat16", "runtime.channels_last=true", "model.mixer=agent"],
        ["runtime.precision=float16", "optimizer.clip=1.0"],
        ["optimizer.clip=0.01", "optimizer.clip_mode=agc", "optimizer.layer_decay=0.8", "runtime.deterministic=true"],
        ["augment=imagenet", "augment.mix_mode=elem", "optimizer.ema_decay=0.9", "optimizer.ema_warmup=true"],
        ["optimizer=sgd", "optimizer.lr=0.01", "schedule=constant", "optimizer.clip_mode=value", "optimizer.clip=1"],
        [
            "optimizer.name=lamb",
            "schedule.name=step",
            "+schedule.kwargs.decay_epochs=1",
            "+optimizer.kwargs.trust_clip=true",
        ],
    ],
    ids=lambda words: words[0],
)
def test_options(trained, words):
    first, second = rows(trained("run", *words))
    assert 0 < float(second["train_loss"]) < float(first["train_loss"]) * 1.2
    assert ("ema_top1" in first) == any("ema_decay" in word for word in words)


def test_compile_computes_the_same(trained, monkeypatch):
    """Training and evaluation forward are both compiled; with a backend that is quick to compile."""
    compiled_modules, compiler = [], torch.compile

    def quick(module, **settings):
        compiled_modules.append(module)
        return compiler(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quick)
    words = ["schedule.epochs=1", "model.name=resnet10t", "batch_size=16"]
    plain, compiled = rows(trained("plain", *words)), rows(trained("compiled", *words, "runtime.compile=true"))
    assert len(compiled_modules) == 2
    assert float(plain[0]["train_loss"]) == pytest.approx(float(compiled[0]["train_loss"]), rel=1e-3)


def test_loggers_combine(trained, monkeypatch, tmp_path):
    """TensorBoard and Weights & Biases beside the CSV, the latter offline because there is no login."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    run = trained("run", "logger=[tensorboard,wandb]")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [round(event.value, 4) for event in events.Scalars("top1")] == [
        round(float(r["top1"]), 4) for r in rows(run)
    ]
    assert "train_images_per_second" in events.Tags()["scalars"]
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    assert len(rows(run)) == 2


def test_fine_tuning_replaces_the_classifier(saccade, small, trained, tmp_path):
    run = trained("run", "schedule.epochs=1")
    file = run / "checkpoints" / "best" / "model.safetensors"
    words = [
        f"model.weights={file}",
        "model.weights_classes=3",
        "optimizer.lr=0",
        "schedule=constant",
        "schedule.epochs=1",
    ]
    same = trained("same", *words)
    assert rows(same)[0]["top1"] == rows(run)[0]["top1"]
    assert trained("other", *words, "model.num_classes=5").exists()


def test_recipe_of_ones_own(saccade, image_folder, tmp_path):
    own = tmp_path / "mine" / "own.yaml"
    own.parent.mkdir()
    own.write_text(
        "# @package _global_\ndefaults:\n  - classification/quickstart\n  - override /data: folder\n  - _self_\n"
        f"batch_size: 8\ndata: {{root: {image_folder}, workers: 0, input_size: [3, 32, 32]}}\n"
        "schedule: {epochs: 1, warmup_epochs: 0}\nruntime: {threads: 1}\n"
    )
    outcome = saccade("train", own, "optimizer.lr=1e-4")
    assert outcome.code == 0, outcome.err
    (run,) = (tmp_path / "runs" / "own").iterdir()
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 1e-4
    assert "did you mean optimizer.lr" in saccade("train", own, "optimizer.lrr=1").err


def test_multirun(saccade, small, tmp_path):
    outcome = saccade("train", *small, "schedule.epochs=1", "--multirun", "optimizer.lr=1e-3,1e-4")
    assert outcome.code == 0, outcome.err
    (sweep,) = (tmp_path / "runs" / "classification" / "quickstart").iterdir()
    rates = [yaml.safe_load((sweep / job / "config.yaml").read_text())["optimizer"]["lr"] for job in ("0", "1")]
    assert rates == [1e-3, 1e-4]
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
