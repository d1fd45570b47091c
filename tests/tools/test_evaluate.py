"""saccade evaluate: the numbers of training again, and weights from elsewhere."""

import re

import pytest
import timm
import torch
from safetensors.torch import load_file

from saccade.tools.engine.datasets import Folder

FIGURES = re.compile(r"(\S+) at (\S+) on (\d+) images of (.*): top-1 (\S+)  top-5 (\S+)  loss (\S+)  \d+ images/s")


@pytest.fixture
def run(saccade, small, tmp_path):
    words = ["optimizer.ema_decay=0.8", "augment.label_smoothing=0", "+model.kwargs.mlp_ratio=3"]
    assert saccade("train", *small, *words, "optimizer.lr=2e-3", "schedule.epochs=3").code == 0
    (run,) = (tmp_path / "runs" / "classification" / "quickstart").iterdir()
    return run


def test_run_is_reproduced(saccade, run, image_folder):
    """Without a word about the data, the model or its arguments: the run knows them."""
    outcome = saccade("evaluate")
    assert outcome.code == 0, outcome.err
    name, size, images, data, top1, top5, loss = FIGURES.search(outcome.out).groups()
    assert (name, size, images, data) == ("nat_nano", "32x32", "15", str(image_folder))
    assert f"top-1 {top1}  top-5 {top5}  loss {loss}" in outcome.out.split("recorded in training: ")[1]
    assert "ema.safetensors" in outcome.out
    for path in (run, run / "checkpoints" / "best", run / "checkpoints" / "best" / "ema.safetensors"):
        assert FIGURES.search(saccade("evaluate", f"checkpoint={path}").out).groups()[4:] == (top1, top5, loss)
    raw = saccade("evaluate", f"checkpoint={run / 'checkpoints' / 'last' / 'model.safetensors'}").out
    last = (run / "metrics.csv").read_text().splitlines()
    row = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    assert FIGURES.search(raw)[7] == f"{float(row['loss']):.4f}"


def test_overrides_apply_last(saccade, run, image_folder):
    outcome = saccade("evaluate", f"checkpoint={run}", "data.input_size=[3,48,40]", "data.eval_split=train")
    assert FIGURES.search(outcome.out).groups()[1:3] == ("48x40", "48")


def test_weights_file_from_elsewhere(saccade, small, image_folder, tmp_path):
    """A wrapped state dict in a .pth, loaded through the model's filter and evaluated as timm would."""
    torch.manual_seed(0)
    model = timm.create_model("nat_nano", num_classes=3).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "w.pth"
    )
    outcome = saccade("evaluate", *small, f"checkpoint={tmp_path / 'w.pth'}")
    assert outcome.code == 0, outcome.err
    found = FIGURES.search(outcome.out)

    folder = Folder(image_folder / "val")
    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    transform = timm.data.create_transform(**config)
    pictures, labels = zip(*(folder.read(index) for index in range(len(folder))), strict=True)
    with torch.no_grad():
        logits = model(torch.stack([transform(picture) for picture in pictures]))
    assert found[5] == f"{(logits.argmax(1) == torch.tensor(labels)).float().mean().item() * 100:.2f}"
    assert float(found[7]) == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item(), abs=1e-4
    )


def test_released_weights_use_their_own_data_config(saccade, small, monkeypatch, tmp_path):
    """Size, crop and interpolation of the pretrained_cfg, its test size first; a stand-in for the download."""
    made = timm.create_model("resnet10t", num_classes=3)
    asked = {}

    def stand_in(name, pretrained, **kwargs):
        asked.update(name=name, pretrained=pretrained, classes=kwargs["num_classes"])
        made.pretrained_cfg = made.pretrained_cfg | {"test_input_size": (3, 40, 40), "test_crop_pct": 1.0}
        return made

    monkeypatch.setattr("timm.create_model", stand_in)
    words = [word for word in small if not word.startswith("data.input_size")]
    outcome = saccade("evaluate", *words, "model.name=resnet10t", "model.pretrained=true", "model.num_classes=3")
    assert outcome.code == 0, outcome.err
    assert FIGURES.search(outcome.out)[2] == "40x40"
    assert asked == {"name": "resnet10t", "pretrained": True, "classes": 1000}
    assert "weights: released weights" in outcome.out


def test_weights_on_disk_are_the_evaluated_ones(run):
    state = load_file(run / "checkpoints" / "best" / "ema.safetensors")
    model = timm.create_model("nat_nano", num_classes=3, mlp_ratio=3)
    model.load_state_dict(state)
