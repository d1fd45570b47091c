"""Timing whole models: steps, batches, failures, attention's share, and the marks."""

import csv
import json
from itertools import product

import pytest
import timm
import torch

from saccade.tools.benchmark import attention_share, models, steps, warm
from saccade.tools.benchmark.attention_share import attention_ms, recorded
from saccade.tools.benchmark.model_marks import MARKS, MODELS, judge, summary, verdict
from saccade.tools.benchmark.steps import batch_size, build

CPU = torch.device("cpu")
SWIN = "swin_tiny_patch4_window7_224"


def test_marks():
    infer, train = "infer_images_per_s", "train_images_per_s"
    expected = {
        ("nat_tiny", 224, infer, 12_500, None),
        ("nat_tiny", 224, train, 4_400, None),
        ("nat_tiny", 224, "train_peak_GiB", 1.0, SWIN),
        ("van_b2", 224, infer, 13_000, None),
        ("van_b2", 224, train, 3_800, None),
        ("litv2_small", 224, infer, 15_000, None),
        ("focalnet_tiny_srf_fused", 224, infer, 1.3, "focalnet_tiny_srf"),
        ("focalnet_tiny_srf_fused", 224, train, 1.3, "focalnet_tiny_srf"),
        ("ravlt_small", 224, "train_attention_share", 0.25, None),
        ("mavit_small", 224, "train_attention_share", 0.25, None),
    }
    for name in ("flatten_swin_tiny", "agent_swin_tiny"):
        expected |= {(name, 224, measure, 0.9, SWIN) for measure in (infer, train)}
        expected |= {(name, 896, measure, 2.0, SWIN) for measure in (infer, train)}
    assert {mark[:5] for mark in MARKS} == expected
    assert {mark.measure for mark in MARKS if mark.below} == {"train_peak_GiB", "train_attention_share"}
    assert {mark.model for mark in MARKS} | {mark.than for mark in MARKS if mark.than} <= set(MODELS)


def test_models_and_their_peers_exist():
    assert all(timm.is_model(name) for name in MODELS)
    assert {"convnext_tiny", SWIN, "focalnet_tiny_srf", "deit_small_patch16_224"} < set(MODELS)


def row(name, size=224, judged=True, **figures):
    return {"case": "c", "implementation": name, "size": size, "judged": judged, **figures}


def test_verdicts():
    rows = [
        row("van_b2", infer_images_per_s=13_000.0, train_images_per_s=3_799.0),
        row("flatten_swin_tiny", infer_images_per_s=900.0, train_images_per_s=89.0),
        row("flatten_swin_tiny", 896, infer_images_per_s=90.0, train_error="train: out of memory"),
        row(SWIN, infer_images_per_s=1000.0, train_images_per_s=100.0),
        row("nat_tiny", train_peak_GiB=7.0, infer_images_per_s=1.0),
        row("ravlt_small", train_attention_share=0.24),
        row("mavit_small", train_attention_share=0.26),
        row("litv2_small", judged=False, infer_images_per_s=99_999.0),
    ]
    found = {(m.model, m.size, m.measure): verdict(m, value, bound) for m, value, bound in judge(rows)}
    assert found == {
        ("van_b2", 224, "infer_images_per_s"): "yes",
        ("van_b2", 224, "train_images_per_s"): "NO",
        ("flatten_swin_tiny", 224, "infer_images_per_s"): "yes",
        ("flatten_swin_tiny", 224, "train_images_per_s"): "NO",
        # Swin was not measured at 896.
        ("flatten_swin_tiny", 896, "infer_images_per_s"): "not measured",
        ("flatten_swin_tiny", 896, "train_images_per_s"): "not measured",
        ("nat_tiny", 224, "infer_images_per_s"): "NO",
        ("nat_tiny", 224, "train_images_per_s"): "not measured",
        ("nat_tiny", 224, "train_peak_GiB"): "not measured",
        ("ravlt_small", 224, "train_attention_share"): "yes",
        ("mavit_small", 224, "train_attention_share"): "NO",
    }
    table = summary(rows)
    assert "| mavit_small | train_attention_share at most 0.25 at 224 | 0.26 | 0.25 | NO |" in table
    assert "| flatten_swin_tiny | 896 | 90 | failed: train: out of memory |  |  |" in table


@pytest.mark.parametrize(("size", "infer", "train"), [(224, 256, 128), (448, 64, 32), (896, 16, 8), (1792, 4, 2)])
def test_batches_have_as_many_pixels(size, infer, train):
    assert batch_size("infer", size, torch.device("cuda")) == infer
    assert batch_size("train", size, torch.device("cuda")) == train


@pytest.mark.parametrize("name", ["agent_swin_tiny", "vit_tiny_patch16_224", "nat_nano"])
def test_models_are_built_for_the_size(name):
    model = build(name, 64, CPU)
    assert model(torch.zeros(1, 3, 64, 64)).shape[0] == 1
    if name == "vit_tiny_patch16_224":
        assert model.pos_embed.shape[1] == 17
    if name == "agent_swin_tiny":
        assert model.stages[0].blocks[0].mixer.core.ah_bias.shape[3] == 16


def test_what_fails_hides_nothing_else(monkeypatch):
    take = models.take_step

    def out_of_memory(row, measure, name, *settings):
        if name == "van_nano" and measure == "infer":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        take(row, measure, name, *settings)

    monkeypatch.setattr(models, "take_step", out_of_memory)
    first, second = models.rows(["van_nano", "nat_nano"], [32], ["infer", "train"], CPU, "none")
    assert first["infer_error"] == "infer: out of memory" and first["train_images_per_s"] > 0
    assert second["infer_images_per_s"] > 0 and second["train_images_per_s"] > 0
    assert not first["judged"] and "failed: infer: out of memory" in summary([first, second])


def test_budget_ends_everything():
    (row,) = models.rows(["nat_nano"], [32], ["infer", "train"], CPU, "none", budget=-1)
    assert "budget" in row["infer_error"] and "budget" in row["train_error"] and "infer_images_per_s" not in row


@pytest.mark.parametrize("name", ["ravlt_nano", "mavit_nano"])
def test_every_call_of_attention_is_recorded(name):
    model = build(name, 64, CPU)
    blocks = sum(len(stage.blocks) for stage in model.stages)
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    with recorded(model) as calls:
        model(images)
    assert sum(calls.values()) == blocks == 5
    # The third stage has two blocks alike.
    assert sorted(calls.values()) == [1, 1, 1, 2]
    torch.testing.assert_close(model(images), before)
    assert all("attend" not in vars(module) for module in model.modules())
    for call in calls:
        for tensor, (shape, stride, dtype) in zip(call.draw(CPU), call.forms, strict=True):
            assert (tuple(tensor.shape), tensor.stride(), tensor.dtype) == (shape, stride, dtype)


def test_attention_is_the_sum_over_calls(monkeypatch):
    called = []
    monkeypatch.setattr(attention_share, "device_time", lambda call, device: called.append(call()) or 2.0)
    model, images = build("ravlt_nano", 64, CPU), torch.randn(2, 3, 64, 64)
    assert attention_ms(model, images, gradients=False, compiled=False) == 10.0
    assert len(called) == 4 and all(not out.requires_grad for out in called)
    called.clear()
    assert attention_ms(model, images, gradients=True, compiled=False) == 10.0
    assert all(gradients[0].shape == gradients[1].shape for gradients in called)


def test_command(saccade, tmp_path):
    outcome = saccade(
        "benchmark", "models", "models=ravlt_nano,nat_nano", "modes=infer,train,share", "sizes=32", "device=cpu"
    )
    assert outcome.code == 0 and "this CPU's" in outcome.out
    first, second = json.loads((tmp_path / "benchmarks/models.json").read_text())["rows"]
    for use in ("infer", "train"):
        assert 0 < first[f"{use}_attention_share"] < 1
        share = first[f"{use}_attention_ms"] / 1e3 * first[f"{use}_images_per_s"] / first[f"{use}_batch"]
        assert first[f"{use}_attention_share"] == pytest.approx(share)
    assert "no attention cores" in second["share_error"] and second["train_images_per_s"] > 0
    with (tmp_path / "benchmarks/models.csv").open() as file:
        assert [row["implementation"] for row in csv.DictReader(file)] == ["ravlt_nano", "nat_nano"]
    assert "| nat_nano | 32 |" in (tmp_path / "benchmarks/models.md").read_text()


def test_models_are_compiled_in_processes(monkeypatch):
    run = []

    def process(words, **options):
        run.append(words[2:])
        return warm.subprocess.CompletedProcess(words, returncode=int("van_nano" in words))

    monkeypatch.setattr(warm.subprocess, "run", process)
    assert warm.warm(product(["nat_nano", "van_nano"], [224, 448]), ["infer", "train"], "default", 3) == 2
    module = "saccade.tools.benchmark.warm"
    assert sorted(run) == [
        [module, name, size, "default", "as-is", "infer", "train"]
        for name in ("nat_nano", "van_nano")
        for size in ("224", "448")
    ]


def test_a_process_runs_a_step_of_each(monkeypatch):
    ran = []
    monkeypatch.setattr(warm, "step_of", lambda measure, *settings: lambda: ran.append((measure, *settings)))
    warm.main(["nat_nano", "64", "none", "as-is", "infer", "train"])
    warm.main(["van_nano", "64", "none", "accelerated", "infer"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    as_is = [(measure, "nat_nano", 64, device, "none", False) for measure in ("infer", "train")]
    assert ran == [*as_is, ("infer", "van_nano", 64, device, "none", True)]


def test_training_trains():
    model = build("nat_nano", 32, CPU)
    before = model.head.fc.weight.clone()
    step = steps.training(model, model, torch.randn(2, 3, 32, 32))
    step()
    assert not torch.equal(model.head.fc.weight, before) and model.head.fc.weight.grad is None
