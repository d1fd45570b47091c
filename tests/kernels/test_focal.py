"""Focal modulation against torch's convolutions and, as part of its module, against the official numbers."""

import json

import pytest
import torch
import torch.nn.functional as F
from focal_cases import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from neighborhood_cases import distance

import saccade
from saccade.kernels.focal import focal_modulation

from ..fill import GOLDENS, named_tensor
from ..official_modules import assert_gradients, assert_output, cotangent, random

BACKENDS = ("reference", "blocked")
CASES = json.loads((GOLDENS / "focal_ops.json").read_text())["cases"]
GOLDEN = [case for case in CASES if case["module"] == "FocalModulation" and "error" not in case]
# The shapes of the stages at 224 with the kernels of lrf models and of detectors, and odd maps, with few channels.
REAL = [
    Case((2, 56, 56, 6), (3, 5, 7), False, seed=0),
    Case((2, 14, 14, 6), (9, 11, 13), False, seed=1),
    Case((2, 7, 7, 6), (3, 5, 7, 9), True, seed=2),
    Case((1, 13, 17, 5), (11, 13, 15), True, seed=3),
    Case((3, 1, 30, 4), (5, 3), False, seed=4),
    Case((2, 1, 1, 1), (3,), False, seed=5),
]

each_backend = pytest.mark.parametrize("backend", BACKENDS)


@st.composite
def cases(draw):
    shape = tuple(draw(st.integers(1, most)) for most in (2, 9, 9, 4))
    kernels = draw(st.lists(st.sampled_from((1, 3, 5, 7, 11)), max_size=4))
    return Case(shape, tuple(kernels), draw(st.booleans()), draw(st.integers(0, 99)))


def assert_equals_torch(case, backend, dtype, tolerance):
    inputs = case.inputs(dtype)
    truth = case.truth(*inputs)
    weight = random(list(truth.shape), 0).to(dtype)
    true_gradients = torch.autograd.grad(truth, inputs, weight)
    with saccade.backend(backend):
        out = case.ours(*inputs)
        gradients = torch.autograd.grad(out, inputs, weight)
    assert out.is_contiguous()
    for value, true in zip((out, *gradients), (truth, *true_gradients), strict=True):
        assert distance(value, true) < tolerance


@each_backend
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_equals_torch(backend, case):
    assert_equals_torch(case, backend, torch.float64, 1e-11)


@each_backend
@pytest.mark.parametrize("case", REAL, ids=str)
def test_equals_torch_on_real_maps(backend, case):
    assert_equals_torch(case, backend, torch.float32, 5e-6)


@each_backend
def test_without_a_bias_and_what_is_left_over(backend):
    """What a token holds after its gates is not read and gets no gradient; there may be any number of it."""
    case = Case((2, 9, 8, 3), (3, 5), True, seed=1)
    projected, point_weight, _, *weights = case.inputs()
    with saccade.backend(backend):
        found = []
        for spare in (0, 4):
            x = F.pad(projected.detach()[..., :9], (0, spare), value=float("nan")).requires_grad_()
            out = case.ours(x, point_weight, None, *weights)
            found.append([out, *torch.autograd.grad(out.square().sum(), [x, point_weight, *weights])])
    assert distance(found[0][0], case.truth(projected, point_weight, None, *weights)) < 1e-12
    assert found[1][1][..., 9:].count_nonzero() == 0
    found[1][1] = found[1][1][..., :9]
    assert all(distance(a, b) < 1e-12 for a, b in zip(*found, strict=True))


@each_backend
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_official_numbers(case, backend):
    """The official module around the operator, written out."""
    parameters = {key: named_tensor(key, shape).requires_grad_() for key, shape in case["state"].items()}
    weights = [parameter for key, parameter in parameters.items() if key.startswith("focal_layers.")]
    x = random(case["input"]["shape"], case["input"]["seed"]).requires_grad_()
    dim = x.shape[-1]
    with saccade.backend(backend):
        projected = F.linear(x, parameters["f.weight"], parameters.get("f.bias"))
        point = parameters["h.weight"].flatten(1), parameters.get("h.bias")
        out = focal_modulation(projected, weights, *point, case["kwargs"].get("normalize_modulator", False))
        if "ln.weight" in parameters:
            out = F.layer_norm(out, (dim,), parameters["ln.weight"], parameters["ln.bias"])
        out = F.linear(out, parameters["proj.weight"], parameters["proj.bias"])
        assert_output(out, case)
        (out * cotangent(case)).sum().backward()
    assert_gradients(case, x.grad, parameters)


@each_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 2e-6)])
@pytest.mark.parametrize("weights_in_float32", [False, True])
def test_low_precision_stays_near_float64(backend, dtype, tolerance, weights_in_float32):
    case = Case((2, 13, 9, 8), (3, 5, 7), False, seed=0)
    projected, *weights = case.inputs(dtype)
    inputs = [projected, *(w.detach().float().requires_grad_() if weights_in_float32 else w for w in weights)]
    rounded = [value.detach().double().requires_grad_() for value in inputs]
    weight = random(list(case.shape), 1).to(dtype)
    truth = case.truth(*rounded)
    true_gradients = torch.autograd.grad(truth, rounded, weight.double())
    with saccade.backend(backend):
        out = case.ours(*inputs)
        gradients = torch.autograd.grad(out, inputs, weight)
    assert out.dtype == dtype
    assert distance(out, truth) < tolerance
    for value, true, given_to in zip(gradients, true_gradients, inputs, strict=True):
        assert value.dtype == given_to.dtype
        assert distance(value, true) < tolerance


def test_without_levels():
    """No kernel leaves the mean of the map itself."""
    projected, point_weight, point_bias = (x.detach() for x in Case((2, 3, 4, 5), (), False, seed=0).inputs())
    query, context, gate, _ = projected.split((5, 5, 1, 1), -1)
    expected = query * F.linear(gate * F.gelu(context.mean((1, 2), keepdim=True)), point_weight, point_bias)
    for backend in BACKENDS:
        with saccade.backend(backend):
            assert distance(focal_modulation(projected, [], point_weight, point_bias), expected) < 1e-12
