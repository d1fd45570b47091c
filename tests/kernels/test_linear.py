"""Linear attention against all pairs of tokens, against official numbers, and in low precision."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from linear_cases import Case, cases
from neighborhood_cases import distance
from torch.nn import functional as F

import saccade
from saccade.kernels.linear import blocked, linear_attention
from saccade.kernels.linear.feature_maps import ACROSS_TOKENS, FEATURE_MAPS

from ..fill import GOLDENS, named_tensor, relative_error
from ..official_modules import random

GOLDEN = json.loads((GOLDENS / "linear_ops.json").read_text())["cases"]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 24)


def gradients(function, tensors):
    out = function(**tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    found = torch.autograd.grad((out * weight).sum(), list(tensors.values()), allow_unused=True)
    found = (torch.zeros_like(x) if g is None else g for g, x in zip(found, tensors.values(), strict=True))
    # An angle has two entries, which only together mean something.
    return out, [
        g.unflatten(-1, (-1, 2)).sum(-1) if name.endswith("rotary") else g
        for name, g in zip(tensors, found, strict=True)
    ]


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_equals_attention_to_all_pairs(case):
    tensors = case.tensors()
    out, found = gradients(case.ours, tensors)
    truth, true = gradients(case.truth, tensors)
    assert distance(out, truth) < 1e-10
    assert all(distance(value, reference) < 1e-8 for value, reference in zip(found, true, strict=True))


@settings(max_examples=80, deadline=None)
@given(case=cases().filter(lambda case: not {case.query_map, case.key_map} & ACROSS_TOKENS))
def test_blocks_equal_the_reference(case):
    tensors = case.tensors()
    with saccade.backend("reference"):
        truth, true = gradients(case.ours, tensors)
    before, blocked.BLOCK = blocked.BLOCK, 24
    try:
        with saccade.backend("blocked"):
            out, found = gradients(case.ours, tensors)
    finally:
        blocked.BLOCK = before
    assert distance(out, truth) < 1e-12
    assert all(distance(value, reference) < 1e-12 for value, reference in zip(found, true, strict=True))


def rotary(case, repeat=1):
    """Return the tables that RAVLT, MAViT and NaLaFormer share, [2, N, repeat * D]."""
    if not case["kwargs"]["rope"]:
        return None
    height, width = case["kwargs"]["resolution"]
    quarter = case["kwargs"]["head_dim"] // 4
    frequency = (10000.0 ** -torch.linspace(0, 1, quarter)).repeat_interleave(2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angle = torch.cat((rows.reshape(-1, 1) * frequency, columns.reshape(-1, 1) * frequency), -1)
    return torch.stack((angle.cos(), angle.sin())).double().repeat(1, 1, repeat)


def rala(q, k, v, case, state):
    elu, tables = FEATURE_MAPS["elu_plus_one"], rotary(case)
    mean = elu(q, None, 1)[0].mean(1, keepdim=True)
    weight = ((mean * elu(k, None, 1)[0]).sum(-1) * q.shape[-1] ** -0.5).softmax(1)
    return linear_attention(
        q, k, v, "elu_plus_one", key_weight=weight, query_rotary=tables, key_rotary=tables, eps=1e-6
    )


def mala(q, k, v, case, state):
    tables = rotary(case)
    scale = q.shape[-1] ** -0.5
    return linear_attention(
        q, k, v, "elu_plus_one", None, "magnitude_aware",
        query_rotary=tables, key_rotary=tables, mean=True, scale=scale,
    )  # fmt: skip


def nala(q, k, v, case, state):
    tables = rotary(case, 2)
    return linear_attention(
        q, k, v, "norm_aware_query", "norm_aware_key", query_rotary=tables, key_rotary=tables, mean=True
    )


def l2vit(q, k, v, case, state):
    out = linear_attention(q, k, v, "relu", normalizer="divide_clamped", eps=100)
    return out * q.shape[-1] ** -0.5


def plain(q, k, v, case, state):
    return linear_attention(q, k, v, "elu_plus_one", mean=True)


def efficient(q, k, v, case, state):
    return linear_attention(q, k, v, "softmax_channels", "softmax_tokens", "none")


def performer(q, k, v, case, state):
    if case["kwargs"].get("no_projection"):
        return linear_attention(q, k, v, "softmax_channels", "softmax_tokens", eps=0)
    directions = state["projection_matrix"].T.expand(q.shape[-2], -1, -1)
    maps = ("favor_relu", None) if case["kwargs"].get("generalized_attention") else ("favor_query", "favor_key")
    return linear_attention(q, k, v, *maps, query_parameter=directions, key_parameter=directions, eps=0)


def hedgehog(q, k, v, case, state):
    matrices = [state[f"feature_map_{side}.mlp.layer"] for side in "qk"]
    if case["kwargs"].get("skip_connection"):
        matrices = [matrix + torch.eye(len(matrix[0]), dtype=matrix.dtype) for matrix in matrices]
    names = {("softmax_dim", True): "hedgehog", ("exp_dim", True): "hedgehog_exponential",
             ("softmax_dim", False): "hedgehog_half", ("relu", True): "transformer_to_rnn"}  # fmt: skip
    name = names[case["kwargs"]["activation"], case["kwargs"]["fullspace"]]
    if case["kwargs"].get("bias"):
        q, k = (
            torch.einsum("bnhd,hdf->bnhf", x, matrix) + state[f"feature_map_{side}.mlp.bias"].reshape(-1, 1)
            for x, matrix, side in zip((q, k), matrices, "qk", strict=True)
        )
        matrices = [None, None]
    return linear_attention(q, k, v, name, query_parameter=matrices[0], key_parameter=matrices[1], eps=1e-12)


def cottention(q, k, v, case, state):
    power = torch.sigmoid(torch.tensor(case["kwargs"]["norm_const"], dtype=q.dtype))
    return linear_attention(q, k, v, "unit", normalizer="none") / (k.shape[1] ** power).clamp_min(1)


OFFICIAL = {
    "rala_linear": rala,
    "mala_linear": mala,
    "nala_linear": nala,
    "l2vit_linear": l2vit,
    "linear_elu1": plain,
    "efficient_attention": efficient,
    "performer": performer,
    "hedgehog": hedgehog,
    "cottention": cottention,
}


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['op']}-{case['case']}")
def test_official_operators(case):
    inputs = [(random(x["shape"], x["seed"]) * x["scale"]).double().requires_grad_() for x in case["inputs"]]
    state = {name: named_tensor(name, shape).double() for name, shape in case.get("state", {}).items()}
    out = OFFICIAL[case["op"]](*(x.transpose(1, 2) for x in inputs), case, state).transpose(1, 2)
    assert list(out.shape) == case["output"]["shape"]
    assert relative_error(out.detach().flatten()[:64], case["output"]["first64"]) < 1e-7
    assert relative_error(out.detach().norm(), case["output"]["norm"]) < 1e-7
    (out * random(case["output"]["shape"], case["cotangent_seed"]).double()).sum().backward()
    for x, description in zip(inputs, case["inputs"], strict=True):
        reference = case["grads"][description["name"]]
        for value, true in ((x.grad.flatten()[:32], reference["first32"]), (x.grad.norm(), reference["norm"])):
            assert distance(value, torch.tensor(true)) < 1e-7


def test_focused_map_as_the_paper_writes_it():
    x, scale = random([2, 5, 3, 4], 0).double(), random([3, 4], 1).double()
    y = (F.relu(x) + 1e-6) / torch.log(1 + scale.exp())
    raised = y**3
    length, shrunk = (z.flatten(-2).norm(dim=-1)[..., None, None] for z in (y, raised))
    torch.testing.assert_close(FEATURE_MAPS["focused"](x, scale, 3.0)[0], length * raised / shrunk)


@pytest.mark.parametrize("power", [3.0, 8.0, 32.0])
def test_focused_map_neither_underflows_nor_overflows(power):
    x = torch.tensor([-1.0, 0.0, 1e-6, 1e4]).expand(1, 3, 2, 4) * torch.tensor([1.0, 1e-6, 1e4]).view(1, 3, 1, 1)
    y = FEATURE_MAPS["focused"](x.requires_grad_(), None, power)[0]
    assert y.isfinite().all()
    torch.testing.assert_close(y.flatten(2).norm(dim=-1), (F.relu(x) + 1e-6).flatten(2).norm(dim=-1))
    y.sum().backward()
    assert x.grad.isfinite().all()


FORMS = {
    "focused": {"query_map": "focused", "mean": True},
    "inline": {"normalizer": "subtract", "mean": True, "scale": 32**-0.5},
    "elu": {"query_map": "elu_plus_one", "mean": True},
    "magnitude": {"query_map": "elu_plus_one", "normalizer": "magnitude_aware", "mean": True, "scale": 32**-0.5},
    "norm_aware": {"query_map": "norm_aware_query", "key_map": "norm_aware_key", "mean": True},
    "clamped": {"query_map": "relu", "normalizer": "divide_clamped", "eps": 100.0},
    "efficient": {"query_map": "softmax_channels", "key_map": "softmax_tokens", "normalizer": "none"},
}


@pytest.mark.parametrize("tokens", [49, 3136, 65536])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_stays_near_float64(dtype, tolerance, form, tokens):
    """Against float64 with inputs that were not rounded."""
    exact = [random([1, tokens, 2, 32], seed).double() for seed in range(3)]
    truth = linear_attention(*exact, **FORMS[form])
    out = linear_attention(*(x.to(dtype) for x in exact), **FORMS[form])
    assert out.dtype == dtype
    assert distance(out, truth) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_large_inputs_stay_finite(backend, form, dtype):
    inputs = [(100 * random([1, 196, 2, 32], seed)).to(dtype).requires_grad_() for seed in range(3)]
    with saccade.backend(backend):
        out = linear_attention(*inputs, **FORMS[form])
        found = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in found)


def test_magnitude_and_subtraction_make_weights_that_sum_to_one():
    q, k = (random([1, 50, 2, 8], seed).double() for seed in (0, 1))
    v = torch.ones(1, 50, 2, 3, dtype=torch.float64)
    for form in ({"normalizer": "subtract"}, {"query_map": "elu_plus_one", "normalizer": "magnitude_aware", "eps": 0}):
        torch.testing.assert_close(linear_attention(q, k, v, mean=True, **form), v)


def test_memory_does_not_hold_features(monkeypatch):
    """The backend for CPUs never makes more features at a time than a block has."""
    largest = 0
    taken = FEATURE_MAPS["focused"]

    def watched(x, parameter, power):
        nonlocal largest
        largest = max(largest, x.numel())
        return taken(x, parameter, power)

    monkeypatch.setitem(FEATURE_MAPS, "focused", watched)
    monkeypatch.setattr(blocked, "BLOCK", 1 << 10)
    q = random([2, 4096, 2, 8], 0).requires_grad_()
    linear_attention(q, q, q, "focused").sum().backward()
    assert 0 < largest <= 1 << 10


def test_small_samples_share_a_block(small_blocks):
    case = Case((2, 2), (2, 2), "relu", "relu", "divide", batch=5, heads=1, dim=2, value_dim=2)
    assert [places[0] for places in blocked._blocks(torch.empty(5, 4, 1, 2))] == [slice(0, 3), slice(3, 6)]
    tensors = case.tensors()
    assert distance(case.ours(**tensors), case.truth(**tensors)) < 1e-12
    assert math.prod(case.grid) == 4
