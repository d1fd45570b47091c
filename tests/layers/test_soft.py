"""Softmax-free attention and its inverses against the official ones, in float64."""

import json

import pytest
import torch
from torch import nn

from saccade.kernels.newton import newton_inverse, newton_inverse_together
from saccade.layers import build_mixer

from ..fill import GOLDENS, named_tensor
from ..official_modules import assert_float64, float64_inputs

CASES = json.loads((GOLDENS / "soft_ops.json").read_text())["cases"]
NAMES = {"Qlandmark_op.weight": "landmark.weight", "Qnorm_act.0.weight": "norm.weight", "Qnorm_act.0.bias": "norm.bias"}


@pytest.mark.parametrize("case", [c for c in CASES if c["op"] == "soft_newton"], ids=lambda case: case["case"])
def test_newton(case):
    inputs = float64_inputs(case)
    squares = (inputs["z"][..., :, None, :] - inputs["z"][..., None, :, :]).square().sum(-1)
    invert = newton_inverse if case["case"].startswith("plain") else newton_inverse_together
    assert_float64(case, inputs, invert(torch.exp(-squares / 2), case["kwargs"]["iter"]))


class Values(nn.Module):
    """Stands for the projection of values, to give the mixer those of the golden."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x):
        return self.values


@pytest.mark.parametrize("case", [c for c in CASES if c["op"] == "soft_core"], ids=lambda case: case["case"])
def test_official_core(case):
    inputs, kwargs = float64_inputs(case), case["kwargs"]
    height, width = (int(size) for size in case["case"].split("_")[-2].split("x"))
    q, v = (x.transpose(1, 2).flatten(-2).unflatten(1, (height, width)) for x in inputs.values())
    mixer = build_mixer(
        "soft",
        kwargs["dim"],
        kwargs["num_heads"],
        ratio=kwargs["ratio"],
        kernel_size=kwargs["use_conv"] or None,
        normalized=case["case"].startswith("norm"),
    ).double()
    state = {key: named_tensor(key, shape).double() for key, shape in case["state"].items()}
    mixer.load_state_dict({NAMES.get(key, "local.weight"): value for key, value in state.items()}, strict=False)
    mixer.q, mixer.v, mixer.proj = nn.Identity(), Values(v), nn.Identity()
    out = mixer(q).flatten(1, 2).unflatten(-1, (kwargs["num_heads"], -1)).transpose(1, 2)
    # Some were recorded with heads joined.
    assert_float64(case, inputs, out if out.dim() == len(case["output"]["shape"]) else out.transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (5, 9)])
@pytest.mark.parametrize("normalized", [False, True])
def test_any_size(size, normalized):
    mixer = build_mixer("soft", 16, 2, ratio=2, normalized=normalized)
    x = torch.randn(2, *size, 16, requires_grad=True)
    mixer(x).sum().backward()
    assert x.grad.isfinite().all()


def test_landmarks_are_few():
    """Unless told, at most 7 x 7 of the map that a body says it has."""
    ratios = {grid: build_mixer("soft", 16, 2, {"grid": grid}).ratio for grid in ((56, 56), (28, 20), 14, 7, (1, 1))}
    assert list(ratios.values()) == [8, 4, 2, 1, 1]
    assert build_mixer("soft", 16, 2, {"grid": (56, 56)}, ratio=4).ratio == 4
    assert build_mixer("soft", 16, 2).ratio == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "dim=16 must be a multiple of num_heads=3"),
        ({"num_heads": 2, "ratio": 0}, "ratio=0 must be at least 1"),
        ({"num_heads": 2, "kernel_size": 4}, "kernel_size=4 must be odd, or None"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer("soft", 16, **options)
