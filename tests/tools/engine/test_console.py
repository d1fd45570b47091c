"""Lines for everyone, bars for terminals."""

import sys

from saccade.tools.engine.console import Console


def test_lines_without_a_terminal(capsys, tmp_path):
    console = Console()
    console.keep(tmp_path / "log.txt")
    assert list(console.progress(range(3), 3, "epoch")) == [0, 1, 2]
    console.print("done")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("done\n", "")
    assert (tmp_path / "log.txt").read_text() == "done\n"


def test_bars_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console()
    assert list(console.progress(range(2, 4), 4, "epoch 7", start=2)) == [2, 3]
    console.print("done")
    captured = capsys.readouterr()
    assert "epoch 7:  50%" in captured.err and captured.out == "done\n"


def test_other_processes_are_silent(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console(main=False)
    console.keep(tmp_path / "log.txt")
    console.print("done")
    assert list(console.progress(range(2), 2, "epoch")) == [0, 1]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "") and list(tmp_path.iterdir()) == []
