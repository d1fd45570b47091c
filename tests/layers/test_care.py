"""CARE's mixer and block against the official ones."""

import json

import pytest
import torch
from torch import nn

from saccade.layers import MixerBlock, build_mixer
from saccade.models.care_checkpoint import OFFICIAL_NAMES
from saccade.models.checkpoint import rename

from ..fill import GOLDENS, named_tensor, relative_error
from ..official_modules import assert_float64, float64_inputs

CASES = json.loads((GOLDENS / "care_ops.json").read_text())["cases"]


BLOCK = "stages.0.blocks.0."


def check(case, module, official, own):
    """Compare output and gradients in float64; `official` and `own` come before the keys in a whole model."""
    state = {}
    for key, shape in case["state"].items():
        counter = key.endswith("num_batches_tracked")
        value = torch.zeros(shape, dtype=torch.long) if counter else named_tensor(key, shape).double()
        state[official + key] = value.flatten(1) if shape[2:] == [1, 1] else value
    state = {key.removeprefix(own): value for key, value in rename(state, OFFICIAL_NAMES).items()}
    module.double().eval().load_state_dict(state)
    inputs = float64_inputs(case)
    assert_float64(case, inputs, module(inputs["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    norms = rename({official + key: norm for key, norm in case["param_grad_norms"].items()}, OFFICIAL_NAMES)
    parameters = {own + key: value for key, value in module.named_parameters()}
    assert norms.keys() == parameters.keys()
    for key, norm in norms.items():
        assert relative_error(parameters[key].grad.norm(), norm) < 1e-7, key


@pytest.mark.parametrize("case", [c for c in CASES if c["op"] == "care_mixer"], ids=lambda case: case["case"])
def test_official_mixer(case):
    """The official mixer is what is before the interactions."""
    kwargs = case["kwargs"]
    mixer = build_mixer("care", kwargs["in_channels"], kwargs["mem_dim"] // 16 if kwargs["if_att"] else None)
    mixer.inner = mixer.outer = nn.Identity()
    check(case, mixer, BLOCK + "token_mixer.", BLOCK + "mixer.")


@pytest.mark.parametrize("case", [c for c in CASES if c["op"] == "care_block"], ids=lambda case: case["case"])
def test_official_block(case):
    kwargs = case["kwargs"]
    heads = kwargs["mem_dim"] // kwargs["att_head_dim"]
    mixer = build_mixer("care", kwargs["dim"], heads, ratios=kwargs["ratio"], project=not kwargs["last"])
    if kwargs["last"]:
        check(case, mixer, BLOCK, BLOCK + "mixer.")
    else:
        check(case, MixerBlock(kwargs["dim"], mixer, None, nn.Identity, layer_scale=1.0), BLOCK, BLOCK)


@pytest.mark.parametrize(("dim", "num_heads"), [(16, 1), (48, 3), (64, None), (320, 5), (96, 24)])
@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_any_width_and_size(dim, num_heads, size):
    mixer = build_mixer("care", dim, num_heads, ratios=(1, 2))
    x = torch.randn(2, *size, dim, requires_grad=True)
    out = mixer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in mixer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 2), "dim=20 must be a multiple of 4 .* num_heads=2"),
        ((18,), "dim=18 must be a multiple of 4"),
        ((16, 0), "dim=16 .* num_heads=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_mixer("care", *arguments)


def test_bad_ratios():
    with pytest.raises(ValueError, match=r"ratios=\(4, 0\) must be at least 1"):
        build_mixer("care", 16, 1, ratios=(4, 0))
