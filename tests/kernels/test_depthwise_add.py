"""Depthwise convolution with a map that is added at the end, by every backend that runs here."""

import pytest
import torch
from hypothesis import given, settings
from large_kernel_cases import Case, cases, convolve
from neighborhood_cases import distance
from operator_contract import Call, OperatorContract
from torch.nn import functional as F

import saccade
from saccade.kernels.depthwise import depthwise_conv2d

each_backend = pytest.mark.parametrize("backend", ["reference", "blocked"])


def draw(case, dtype=torch.float64):
    """Return tensors by name, asking for gradients."""
    x, _, weight, *rest = case.tensors(dtype)
    tensors = {"x": x, "weight": weight, **({"bias": rest[2]} if case.bias else {}), "add": case.addend(dtype)}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def problem(case, backend, **options):
    def ours(**tensors):
        with saccade.backend(backend):
            return depthwise_conv2d(**tensors, dilation=case.dilation, **options)

    name = " ".join((backend, *options.values()))
    return Call(name, ours, lambda dtype=torch.float64: draw(case, dtype), frozenset({"weight", "bias"}))


PROBLEMS = [
    problem(Case((2, 4, 5, 3), (1, 1), (5, 3), (2, 1), True, seed=1), "blocked"),
    problem(Case((2, 6, 3, 2), (1, 1), (3, 7), (3, 2), False, seed=2), "reference", activation="gelu"),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
class TestAddedMap(OperatorContract):
    operator = "depthwise_conv2d"


@each_backend
@pytest.mark.parametrize("activation", [None, "gelu"])
@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_equals_a_sum(backend, activation, case):
    tensors = draw(case)
    x, weight, *bias, add = tensors.values()
    plain = convolve(x, weight, *bias, dilation=case.dilation)
    truth = (F.gelu(plain) if activation else plain) + add
    cotangent = case.addend()
    true_gradients = torch.autograd.grad(truth, tensors.values(), cotangent)
    with saccade.backend(backend):
        out = depthwise_conv2d(**tensors, dilation=case.dilation, activation=activation)
        gradients = torch.autograd.grad(out, tensors.values(), cotangent)
    for value, true in zip((out, *gradients), (truth, *true_gradients), strict=True):
        assert distance(value, true) < 1e-12


@each_backend
def test_the_sum_is_rounded_once(backend):
    tensors = {name: x.detach() for name, x in draw(Case((2, 13, 9, 8), (1, 1), (7, 7), (3, 3), True, seed=0)).items()}
    rounded = {name: x.bfloat16() for name, x in tensors.items()}
    exact = {name: x.float() for name, x in rounded.items()}
    with saccade.backend(backend):
        # Rounded by itself, the convolution leaves half of the places another number.
        assert distance(depthwise_conv2d(**rounded), depthwise_conv2d(**exact).bfloat16()) < 1e-5


@each_backend
def test_a_part_of_another_map(backend):
    x, weight, bias, add = draw(Case((2, 9, 8, 3), (1, 1), (5, 5), (2, 2), True, seed=1)).values()
    packed = torch.cat([add, add], -1).transpose(1, 2).contiguous().transpose(1, 2)
    with saccade.backend(backend):
        part = depthwise_conv2d(x, weight, bias, add=packed[..., 3:])
        assert part.is_contiguous()
        assert torch.equal(part, depthwise_conv2d(x, weight, bias, add=add))


def test_its_gradient_is_that_of_the_output():
    """No copy is made, and the map is not kept."""
    tensors = draw(Case((2, 4, 5, 3), (1, 1), (5, 3), (1, 1), True, seed=1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()), lambda x: x):
        depthwise_conv2d(**tensors)
    assert tensors["x"].data_ptr() in kept and tensors["add"].data_ptr() not in kept
    out = depthwise_conv2d(**tensors)
    cotangent = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, tensors["add"], cotangent)
    assert gradient.data_ptr() == cotangent.data_ptr()


def test_autocast_casts_it():
    tensors = draw(Case((2, 9, 8, 3), (1, 1), (5, 5), (1, 1), True, seed=1), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = depthwise_conv2d(**tensors)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and tensors["add"].grad.dtype == torch.float32
