"""Batch normalisation in training against torch's, and as an operator of torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighborhood_cases import distance
from operator_contract import Call, OperatorContract
from torch import nn
from torch.nn import functional as F

import saccade
from saccade.kernels.batch_norm import batch_norm
from saccade.layers import BatchNorm


def draw(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = shape[-1]
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 5
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    return {name: t.to(dtype).requires_grad_() for name, t in (("x", x), ("weight", weight), ("bias", bias))}


def normed(**tensors):
    return batch_norm(**tensors, eps=1e-3)[0]


CALLS = [
    Call(str(shape), normed, lambda dtype=torch.float64, shape=shape: draw(shape, dtype), frozenset({"weight", "bias"}))
    for shape in ((2, 3, 4, 5), (3, 1, 2, 3))
]


@pytest.mark.parametrize("problem", CALLS, ids=str)
class TestContract(OperatorContract):
    operator = "batch_norm"


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 6) for _ in range(4))).filter(lambda shape: torch.Size(shape[:-1]).numel() > 1),
    eps=st.sampled_from((1e-6, 1e-3)),
    seed=st.integers(0, 999),
)
def test_equals_torch(shape, eps, seed):
    tensors = draw(shape, seed=seed)
    out, mean, var = batch_norm(**tensors, eps=eps)
    x, weight, bias = tensors.values()
    truth = F.batch_norm(x.permute(0, 3, 1, 2), None, None, weight, bias, True, 0.1, eps).permute(0, 2, 3, 1)
    found, true = (torch.autograd.grad(y.sin().sum(), list(tensors.values())) for y in (out, truth))
    assert distance(out, truth) < 1e-9
    assert distance(mean, x.mean((0, 1, 2))) < 1e-12
    assert distance(var, x.var((0, 1, 2), correction=0)) < 1e-12
    # The variance of two equal tokens is zero, and torch's own gradient is no better there.
    assert all((a - b).abs().max() < 1e-6 * (1 + b.abs().max()) for a, b in zip(found, true, strict=True))


def test_values_far_from_zero_keep_their_variance():
    tensors = draw((4, 8, 8, 3), torch.float32)
    far = tensors | {"x": (tensors["x"].detach() + 3000)}
    true = far["x"].double().var((0, 1, 2), correction=0)
    assert distance(batch_norm(**far)[2], true) < 1e-5


def test_autocast_narrows_the_result_and_the_gradient_but_not_the_input():
    tensors = draw((2, 6, 5, 8), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, mean, var = batch_norm(**tensors)
    assert (out.dtype, mean.dtype, var.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    truth = batch_norm(**exact)[0]
    assert distance(out, truth) < 4e-3
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = torch.autograd.grad(out, list(tensors.values()), dout)
    true = torch.autograd.grad(truth, list(exact.values()), dout.double())
    assert all(x.dtype == torch.float32 for x in found)
    assert all(distance(a, b) < tolerance for a, b, tolerance in zip(found, true, (4e-3, 1e-5, 1e-5), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(3, 4)}, r"x has shape \[3, 4\]; valid: \[B, H, W, C\]"),
        ({"x": torch.randn(1, 1, 1, 4)}, r"x has shape \[1, 1, 1, 4\]; valid: more than one token"),
        ({"weight": torch.randn(3)}, r"weight has shape \[3\]; valid: \[4\]"),
        ({"bias": torch.randn(4).double()}, "bias has dtype torch.float64; valid: that of x, torch.float32"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"x": torch.randn(2, 3, 3, 4), "weight": torch.ones(4), "bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=message):
        batch_norm(**good | change)


def test_explain_names_the_backends():
    told = saccade.explain(batch_norm, torch.randn(2, 3, 3, 4), torch.ones(4), torch.zeros(4))
    assert "fused" in told and "-> forward  reference" in told


def test_layer_keeps_statistics_as_torch_does():
    ours, theirs = BatchNorm(6, momentum=0.3), nn.BatchNorm2d(6, momentum=0.3)
    for seed in range(3):
        x = draw((2, 4, 5, 6), torch.float32, seed)["x"].detach()
        out, truth = ours._train(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert distance(out, truth) < 1e-5
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-5), name
    x = x + 1
    assert distance(ours.eval()(x), theirs.eval()(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) < 1e-5


def test_layer_leaves_to_torch_what_the_operator_lacks():
    assert BatchNorm(6)._usual
    for unusual in ({"affine": False}, {"track_running_stats": False}, {"momentum": None}):
        assert not BatchNorm(6, **unusual)._usual
    with saccade.backend("blocked"):
        assert not BatchNorm(6)._usual


def test_layer_under_autocast_branches_off_in_its_dtype():
    norm, x = BatchNorm(6), torch.randn(2, 4, 4, 6)
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            assert norm.train(training)(x).dtype == torch.bfloat16
        assert norm(x).dtype == torch.float32
