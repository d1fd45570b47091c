"""Depthwise convolution and large kernel attention against torch's convolutions and the official numbers."""

import json

import pytest
import torch
from hypothesis import given, settings
from large_kernel_cases import OPERATORS, Case, cases
from neighborhood_cases import distance

import saccade
from saccade.kernels.large_kernel import large_kernel_attention

from ..fill import GOLDENS, named_tensor
from ..official_modules import assert_gradients, assert_output, cotangent, random

BACKENDS = ("reference", "blocked")
GOLDEN = [case for case in json.loads((GOLDENS / "lka_ops.json").read_text())["cases"] if case["module"] == "LKA"]
# The shapes of VAN's stages at 224 and of odd maps, with few channels.
SHAPES = [(56, 56), (28, 28), (14, 14), (7, 7), (13, 17), (1, 1), (1, 30)]

each_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def assert_equals_torch(operator, case, backend, tolerance, dtype=torch.float64):
    inputs = operator.inputs(case, dtype)
    truth = operator.truth(*inputs, dilation=case.dilation)
    weight = random(list(truth.shape), 0).to(dtype)
    true_gradients = torch.autograd.grad(truth, inputs, weight)
    with saccade.backend(backend):
        out = operator.ours(*inputs, dilation=case.dilation)
        gradients = torch.autograd.grad(out, inputs, weight)
    assert out.is_contiguous()
    for value, true in zip((out, *gradients), (truth, *true_gradients), strict=True):
        assert distance(value, true) < tolerance


@each_operator
@each_backend
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_equals_torch(operator, backend, case):
    assert_equals_torch(operator, case, backend, 1e-12)


@each_operator
@each_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torch_on_real_maps(operator, backend, shape):
    case = Case((2, *shape, 6), (5, 5), (7, 7), (3, 3), True, seed=0)
    assert_equals_torch(operator, case, backend, 5e-6, torch.float32)


@each_operator
@each_backend
def test_strided_input(operator, backend):
    """A map that is a part of another, in another order of axes."""
    case = Case((2, 9, 8, 3), (3, 3), (5, 5), (2, 2), True, seed=1)
    x, *parameters = operator.inputs(case)
    packed = torch.cat([x, x], -1).transpose(1, 2).contiguous().transpose(1, 2)
    with saccade.backend(backend):
        part = operator.ours(packed[..., 3:], *parameters, dilation=2)
        assert part.is_contiguous()
        assert distance(part, operator.ours(x, *parameters, dilation=2)) < 1e-12


@each_backend
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_official_numbers(case, backend):
    parameters = {key: named_tensor(key, shape).requires_grad_() for key, shape in case["state"].items()}
    x = random(case["input"]["shape"], case["input"]["seed"]).requires_grad_()
    with saccade.backend(backend):
        out = large_kernel_attention(
            x.permute(0, 2, 3, 1),
            parameters["conv0.weight"],
            parameters["conv_spatial.weight"],
            parameters["conv1.weight"].flatten(1),
            parameters["conv0.bias"],
            parameters["conv_spatial.bias"],
            parameters["conv1.bias"],
            dilation=3,
        ).permute(0, 3, 1, 2)
        assert_output(out, case)
        (out * cotangent(case)).sum().backward()
    assert_gradients(case, x.grad, parameters)


@each_operator
@each_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 1e-6)])
@pytest.mark.parametrize("parameters_in_float32", [False, True])
def test_low_precision_stays_near_float64(operator, backend, dtype, tolerance, parameters_in_float32):
    case = Case((2, 13, 9, 8), (5, 5), (7, 7), (3, 3), True, seed=0)
    x, *parameters = operator.inputs(case, dtype)
    inputs = [x, *(p.detach().float().requires_grad_() if parameters_in_float32 else p for p in parameters)]
    rounded = [value.detach().double().requires_grad_() for value in inputs]
    weight = torch.randn(case.shape).to(dtype)
    truth = operator.truth(*rounded, dilation=case.dilation)
    true_gradients = torch.autograd.grad(truth, rounded, weight.double())
    with saccade.backend(backend):
        out = operator.ours(*inputs, dilation=case.dilation)
        gradients = torch.autograd.grad(out, inputs, weight)
    assert out.dtype == dtype
    assert distance(out, truth) < tolerance
    for value, true, given_to in zip(gradients, true_gradients, inputs, strict=True):
        assert value.dtype == given_to.dtype
        assert distance(value, true) < tolerance
