"""The benchmark of training, with nano backbones on a CPU."""

import json


def test_benchmark(saccade, tmp_path):
    outcome = saccade("benchmark", "dense", "device=cpu", "models=nat_nano", f"out={tmp_path}")
    assert outcome.code == 0 and outcome.out.count("nat_nano") == 2
    report = json.loads((tmp_path / "dense.json").read_text())
    assert [row["case"].split(",")[0] for row in report["rows"]] == ["Mask R-CNN", "UPerNet"]
    assert all(row["train_images_per_s"] > 0 for row in report["rows"])
    assert (tmp_path / "dense.png").stat().st_size > 5000


def test_unknown_option(saccade):
    outcome = saccade("benchmark", "dense", "size=3")
    assert outcome.code == 1
    assert (
        outcome.err
        == "saccade: unexpected 'size=3': benchmark dense takes out=..., device=..., models=..., compile=...\n"
    )
