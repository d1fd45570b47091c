"""ViG's mixer and its MLPs against the official ones, in float64."""

import json

import pytest
import torch
from timm.layers import GluMlp
from torch import nn

from saccade.layers import build_mixer

from ..fill import GOLDENS, named_tensor, relative_error
from ..official_modules import assert_float64, float64_inputs

CASES = json.loads((GOLDENS / "gated_linear_ops.json").read_text())["cases"]
NAMES = {
    "in_proj.0.": "conv.",
    "qkv_proj.": "qkv.",
    "gk_proj.": "memory.",
    "o_proj.": "proj.",
    "g_norm.": "norm.",
    "l_norm.": "local_norm.",
    "g_proj.": "gate.",
    "gate_proj.": "fc1.",
    "down_proj.": "fc2.",
}


def ours(key):
    return next((key.replace(old, new) for old, new in NAMES.items() if key.startswith(old)), key)


def filled(module, case):
    """Give a module the weights that the official names stand for, and the gradients' recorded norms by our names."""
    module.load_state_dict({ours(key): named_tensor(key, shape) for key, shape in case["state"].items()})
    return module.double(), {ours(key): norm for key, norm in case["param_grad_norms"].items()}


def check(case, module, norms):
    """Run a module on the recorded input, whatever its layout, and compare output and gradients."""
    inputs = float64_inputs(case)
    (x,) = inputs.values()
    if case["inputs"][0]["layout"] == "BCHW":
        out = module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    else:
        out = module(x.unflatten(1, (-1, 5))).flatten(1, 2)
    assert_float64(case, inputs, out)
    parameters = dict(module.named_parameters())
    assert parameters.keys() == norms.keys()
    assert all(relative_error(parameters[key].grad.norm(), norm) < 1e-7 for key, norm in norms.items())


@pytest.mark.parametrize("case", [c for c in CASES if c["op"].startswith("vig_gla")], ids=lambda case: case["case"])
def test_official_mixer(case):
    kwargs = case["kwargs"]
    options = {"conv_act": kwargs["use_act_in_conv"], "out_act": kwargs.get("use_out_act", False)}
    mixer = build_mixer("gla", 32, 2, halve_in_eval=case["op"] == "vig_gla", **options)
    mixer, norms = filled(mixer, case)
    check(case, mixer.train(kwargs.get("training", False)), norms)


@pytest.mark.parametrize("case", [c for c in CASES if c["op"].endswith("mlp")], ids=lambda case: case["case"])
def test_official_mlp(case):
    """timm's gated MLP is both of theirs: SiLU of the first half of one projection is the gate; no bias."""
    dim = case["state"]["gate_proj.weight" if case["op"] == "vig_mlp" else "fc1.weight"][1]
    mlp = GluMlp(dim, 2 * case["kwargs"]["intermediate_size"], act_layer=nn.SiLU, bias=False, gate_last=False)
    check(case, *filled(mlp, case))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (5, 9)])
def test_any_size(size):
    mixer = build_mixer("gla", 16, 2)
    x = torch.randn(2, *size, 16, requires_grad=True)
    mixer(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "dim=16 must be a multiple of 2 num_heads, num_heads=3"),
        ({"num_heads": 16}, "dim=16 must be a multiple of 2 num_heads, num_heads=16"),
        ({"num_heads": 2, "gate_rank": 0}, "gate_rank=0 must be at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer("gla", 16, **options)
