"""What torch.compile is told of a model."""

import pytest
import timm
import torch
from torch import nn

from saccade.tools.engine.compilation import OPTIONS, compiled


@pytest.fixture
def told(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda model, **settings: calls.append(settings) or model)
    return calls


def test_models_of_ours_keep_their_layout_in_every_mode(told):
    model = timm.create_model("van_nano")
    for mode in ("default", "reduce-overhead"):
        assert compiled(nn.Sequential(model), mode, dynamic=False) is not None
    assert OPTIONS["layout_optimization"] is False
    assert told == [
        {"options": OPTIONS, "dynamic": False},
        {"options": {**OPTIONS, "triton.cudagraphs": True}, "dynamic": False},
    ]


def test_other_models_are_compiled_as_they_were(told):
    compiled(nn.Conv2d(3, 4, 1), "reduce-overhead")
    assert told == [{"mode": "reduce-overhead", "dynamic": None}]


def test_a_model_of_ours_compiles():
    model = timm.create_model("van_nano", depths=(1,), embed_dims=(8,), mlp_ratios=(2,)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(compiled(model)(x), model(x), atol=1e-5)
