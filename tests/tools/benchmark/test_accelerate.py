"""`saccade benchmark accelerate`: before and after in one table, which `accelerate` reads."""

import torch

from saccade.models.accelerate import measured
from saccade.tools.__main__ import main
from saccade.tools.benchmark import accelerate
from saccade.tools.benchmark.operators.depthwise import Case

CPU = torch.device("cpu")
SWIN = "swin_tiny_patch4_window7_224"


def test_command_writes_what_accelerate_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerate, "DEPTHWISE", (Case(1, 14, 14, 4, 7, 1),))
    assert main(["benchmark", "accelerate", f"models={SWIN}", "size=32", f"out={tmp_path}", "device=cpu"]) == 0
    assert "swin" in capsys.readouterr().out
    (gain,) = measured.model_gains(measured.read(measured.MODELS, tmp_path))
    assert gain.model == SWIN
    assert gain.setting == "32 pixels, bfloat16, compile=none"
    assert gain.infer > 0
    assert gain.train > 0
    ((key, shapes),) = measured.depthwise_gains(measured.read(measured.DEPTHWISE, tmp_path)).items()
    assert key == ((7, 7), (1, 1), torch.float32, "cpu")
    assert list(shapes) == [(4, 14, 14)]
    table = (tmp_path / "accelerate.md").read_text()
    assert f"{gain.infer:.2f}x" in table
    assert f"{gain.train:.2f}x" in table


def test_what_fails_or_has_no_time_says_so():
    late = "TimeoutError: the budget was used up"
    rows = list(accelerate.model_rows({SWIN: 32}, ["none"], CPU, end=0))
    assert [row["error"] for row in rows] == [late] * 2
    assert [row["error"] for row in accelerate.depthwise_rows([Case(1, 7, 7, 4, 7, 1)], CPU, end=0)] == [late] * 2
    assert measured.model_gains({"environment": {}, "rows": rows}) == []
    assert late in accelerate.summary(rows, ["infer_images_per_s"], faster=True)
    (row, _) = accelerate.model_rows({"no_such_model": 32}, ["none"], CPU, end=float("inf"))
    assert "no_such_model" in row["error"]


def test_each_model_gets_images_of_its_own_size():
    assert [accelerate.own_size(name) for name in (SWIN, "halonet26t", "nat_nano")] == [224, 256, 32]
    assert {accelerate.own_size(name) for name in accelerate.MODELS} == {224, 256}


def test_gains_are_ratios():
    rows = [
        {
            "case": "c",
            "implementation": name,
            "model": SWIN,
            "setting": "s",
            **dict(zip(("a_ms", "b"), figures, strict=True)),
        }
        for name, figures in (("timm", (4.0, 100.0)), ("accelerated", (2.0, 150.0)))
    ]
    told = accelerate.summary(rows, ["a_ms"], faster=False), accelerate.summary(rows, ["b"], faster=True)
    assert "4, 2, 2.00x" in told[0]
    assert "100, 150, 1.50x" in told[1]


def test_bad_settings(capsys):
    for word, hint in (("depthwise=perhaps", "true"), ("size=8", "32"), ("models=nonsense_model", "models")):
        assert main(["benchmark", "accelerate", word, "device=cpu"]) == 1
        error = capsys.readouterr().err
        assert hint in error
        assert error.count("\n") == 1
