"""The table of released weights: what it says of a model, and that it is up to date."""

from pathlib import Path

import pytest
import timm

import saccade
from saccade.tools import checkpoints
from saccade.tools.__main__ import main

ROOT = Path(__file__).parents[2]


def test_the_file_is_what_the_command_writes():
    assert (ROOT / "checkpoints.md").read_text() == checkpoints.table(), "run `saccade checkpoints`"


def test_every_released_weight_has_a_line():
    text = (ROOT / "checkpoints.md").read_text()
    names = saccade.list_models(pretrained=True)
    assert [name for name in names if f"| `{name}` |" not in text] == []
    assert [name for name in names if timm.models.get_pretrained_cfg(name).url not in text] == []


def test_macs_are_those_of_the_paper():
    """2.7 and 4.3 G are what the repository states; without a head, the head's are missing."""
    _, macs = checkpoints.measure("nat_mini", (3, 224, 224), 1000)
    assert round(macs / 1e9, 1) == 2.7
    _, headless = checkpoints.measure("nat_mini", (3, 224, 224), 0)
    assert macs - headless == 512 * 1000


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setattr(checkpoints, "table", lambda: "the table\n")
    assert main(["checkpoints"]) == 0
    assert (tmp_path / "checkpoints.md").read_text() == "the table\n"
    assert str(tmp_path / "checkpoints.md") in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nat_mini"], ["--check"]])
def test_no_arguments(words, capsys):
    assert main(["checkpoints", *words]) == 1
    assert words[0] in capsys.readouterr().err


def test_only_in_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "GOLDENS", tmp_path / "tests" / "goldens")
    assert main(["checkpoints"]) == 1
    assert "no source checkout" in capsys.readouterr().err
