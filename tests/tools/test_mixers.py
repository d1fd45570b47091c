"""`saccade mixers`: a row for every mixer, also for one that fails."""

import pytest
import timm
from torch import nn

from saccade.layers import MIXERS
from saccade.tools.checkpoints import measure


def test_a_row_for_every_mixer(saccade):
    outcome = saccade("mixers", "body=pyramid_nano", "size=32", "repeats=1")
    assert (outcome.code, outcome.err) == (0, "")
    about, header, *rows, last = outcome.out.splitlines()
    assert about.startswith("pyramid_nano, 32x32, batch 1, float32, ")
    assert header.split() == ["mixer", "parameters", "MACs", "ms"]
    assert [row.split()[0] for row in rows] == sorted(MIXERS)
    assert {len(row) for row in [header, *rows]} == {len(header)}
    assert last == f"{len(MIXERS)} mixers"
    for row in rows:
        name, parameters, m, macs, g, milliseconds = row.split()
        model = timm.create_model("pyramid_nano", mixer=name)
        assert float(parameters) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.005)
        assert (m, g) == ("M", "G") and 0.002 < float(macs) < 0.05 and float(milliseconds) > 0


def test_operations_of_a_mixer():
    """Softmax attention does Q K^T and P V besides what grows with the tokens."""
    body = {"depths": (1, 0, 0, 0), "mixer": "softmax"}
    _, small = measure("pyramid_nano", (3, 64, 64), 1000, **body)
    _, large = measure("pyramid_nano", (3, 128, 64), 1000, **body)
    head, quadratic = 128 * 1000, 2 * 32 * (512**2 - 2 * 256**2)
    assert large - 2 * small == quadratic - head


def test_what_fails_is_shown(saccade, monkeypatch):
    class Broken(nn.Identity):
        def __init__(self, dim):
            raise RuntimeError("no such luck")

    monkeypatch.setitem(MIXERS, "broken", Broken)
    for name in set(MIXERS) - {"broken", "na", "softmax"}:
        monkeypatch.delitem(MIXERS, name)
    outcome = saccade("mixers", "body=pyramid_nano", "size=32", "repeats=1")
    assert outcome.code == 1
    assert "\nbroken   failed: RuntimeError: no such luck\nna " in outcome.out
    assert outcome.out.endswith("3 mixers, of which 1 failed\n")


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("body=van_b0", "van_b0 takes no mixer"),
        ("body=pyramid_tin", "did you mean pyramid_tiny"),
        ("size=0", "size=0 is not valid"),
        ("batch=x", "batch=x is not valid"),
        ("mixer=na", "unexpected 'mixer=na': saccade mixers takes body=..., size=..."),
    ],
)
def test_bad_words(saccade, word, part):
    outcome = saccade("mixers", word)
    assert outcome.code == 1 and part in outcome.err and outcome.err.count("\n") == 1
