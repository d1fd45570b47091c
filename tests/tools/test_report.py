"""Runs with other mixers, and `saccade report`, the table of a sweep over them."""

import re

import pytest
import timm


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_sweep_over_mixers(saccade, small, tmp_path):
    """One run that cannot start does not stop the others."""
    sweep = ["--multirun", "model.name=pyramid_nano", "model.mixer=lka,[na,na,agent,dina],nope"]
    outcome = saccade("train", *sweep, *small, "schedule.epochs=1")
    assert outcome.code == 1 and "unknown model.mixer 'nope'" in outcome.err
    (folder,) = (tmp_path / "runs/classification/quickstart").iterdir()
    outcome = saccade("report", folder)
    assert (outcome.code, outcome.err) == (0, "")
    header, rule, *rows, blank, about = outcome.out.splitlines()
    columns = ["model.mixer", "parameters", "epochs", "last top-1", "best top-1 (epoch)", "training time"]
    assert cells(header) == columns
    assert set(rule) <= set("|- ") and blank == ""
    assert [cells(row)[0] for row in rows] == ["lka", "['na', 'na', 'agent', 'dina']"]
    model = timm.create_model("pyramid_nano", mixer="lka", num_classes=3)
    assert cells(rows[0])[1] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.3f} M"
    for row in rows:
        _, _, epochs, last, best, seconds = cells(row)
        assert epochs == "1" and best == f"{last} (1)"
        assert re.fullmatch(r"\d+\.\d\d %", last) and re.fullmatch(r"\d+ s", seconds)
    assert about.startswith("classification/quickstart, pyramid_nano, seed 42, CPU, threads 1, 20")
    written = (folder / "0" / "metrics.csv").read_text().splitlines()
    top1 = dict(zip(*(line.split(",") for line in written), strict=True))["top1"]
    assert cells(rows[0])[3] == f"{float(top1):.2f} %"


def test_unfinished_runs_are_told(saccade, small, tmp_path):
    assert saccade("train", *small, "run.dir=runs/a").code == 0
    metrics = tmp_path / "runs/a/metrics.csv"
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:2]) + "\n")
    lines = saccade("report", "runs").out.splitlines()
    assert cells(lines[0])[0] == "model.name" and cells(lines[2])[:1] == ["nat_nano"]
    assert cells(lines[2])[2] == "1 of 2"
    metrics.unlink()
    assert cells(saccade("report", "runs/a").out.splitlines()[2])[2:5] == ["0 of 2", "-", "-"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "takes one folder"),
        (["a", "b"], "takes one folder"),
        (["nowhere"], "no such folder: nowhere"),
        (["."], ". holds no run"),
    ],
)
def test_bad_words(saccade, words, part):
    outcome = saccade("report", *words)
    assert outcome.code == 1 and part in outcome.err and outcome.err.count("\n") == 1


def test_the_quickstart_with_another_mixer(saccade, small, tmp_path):
    """The run's model is built with it again when it is evaluated."""
    words = ["model.mixer=agent", "+model.mixer_kwargs.agent_num=4", "schedule.epochs=1", f"run.dir={tmp_path}/run"]
    assert saccade("train", *small, *words).code == 0
    assert "agent_num: 4" in (tmp_path / "run/config.yaml").read_text()
    outcome = saccade("evaluate", f"checkpoint={tmp_path}/run")
    assert outcome.code == 0 and "top-1" in outcome.out, outcome.err
