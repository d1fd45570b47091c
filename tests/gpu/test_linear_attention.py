"""Linear and agent attention and InLine's convolution on a GPU against the same calls in float64 on the CPU."""

import agent_cases
import linear_cases
import pytest
import torch
from neighborhood_cases import distance

from saccade.kernels.dynamic_depthwise import dynamic_depthwise_conv2d
from saccade.layers import build_mixer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CALLS = {
    "focused": linear_cases.Case((56, 56), (28, 28), "focused", "focused", "divide", dim=32, value_dim=32),
    "inline": linear_cases.Case((56, 56), (56, 56), "identity", "identity", "subtract", dim=32, value_dim=32),
    "norm_aware": linear_cases.Case(
        (28, 28), (28, 28), "norm_aware_query", "norm_aware_key", "divide", rotary=True, dim=32, value_dim=32
    ),
    "weighted": linear_cases.Case(
        (28, 28), (28, 28), "elu_plus_one", "elu_plus_one", "divide", weight=True, dim=32, value_dim=32
    ),
    "agent": agent_cases.Case((56, 56), (56, 56), (7, 7), dim=32, value_dim=32),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize("name", CALLS)
def test_operators(name, dtype, tolerance):
    call = CALLS[name]
    rounded = {key: x.detach().to("cuda", dtype).requires_grad_() for key, x in call.tensors().items()}
    exact = {key: x.detach().cpu().double().requires_grad_() for key, x in rounded.items()}
    out, truth = call.ours(**rounded), call.ours(**exact)
    cotangent = torch.randn(out.shape, dtype=dtype, device="cuda")
    found = torch.autograd.grad(out, list(rounded.values()), cotangent)
    true = torch.autograd.grad(truth, list(exact.values()), cotangent.cpu().double())
    assert distance(out.cpu(), truth) < tolerance
    for key, value, reference in zip(exact, found, true, strict=True):
        assert distance(value.cpu(), reference) < tolerance, key


def test_dynamic_depthwise():
    x, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 9, 8, 16), (3, 16, 3, 3)))
    found = dynamic_depthwise_conv2d(x.cuda(), weight.cuda())
    assert distance(found.cpu(), dynamic_depthwise_conv2d(x, weight)) < 1e-12


@pytest.mark.parametrize("name", ["agent", "focused", "inline", "softmax", "window"])
def test_mixers(name):
    mixer = build_mixer(name, 64, 2).double()
    x = torch.randn(2, 20, 31, 64, dtype=torch.float64)
    truth = mixer(x)
    out = mixer.cuda()(x.cuda())
    out.sum().backward()
    assert distance(out.cpu(), truth) < 1e-10
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
