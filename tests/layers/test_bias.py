"""The linear map with a cheap bias gradient equals torch's."""

import pytest
import torch
import torch.nn.functional as F

from saccade.layers.bias import AddedBias, Linear, sum_tokens

from ..official_modules import random


@pytest.mark.parametrize("tokens", [0, 1, 127, 128, 300])
def test_sums_over_tokens(tokens):
    x = random([tokens, 2, 5], 0).double()
    torch.testing.assert_close(sum_tokens(x), x.sum((0, 1)))
    assert sum_tokens(x.bfloat16()).dtype == torch.float32


def linear(x, weight, bias):
    return AddedBias.apply(F.linear(x, weight, bias.detach()), bias)


def test_gradients_equal_those_of_torch():
    inputs = [random(shape, seed).double().requires_grad_() for seed, shape in enumerate(([3, 70, 4], [6, 4], [6]))]
    found, true = (
        torch.autograd.grad(f(*inputs).square().sum(), inputs, create_graph=True) for f in (linear, F.linear)
    )
    for value, expected in zip(found, true, strict=True):
        torch.testing.assert_close(value, expected)
    again = [torch.autograd.grad(sum(x.square().sum() for x in first), inputs) for first in (found, true)]
    for value, expected in zip(*again, strict=True):
        torch.testing.assert_close(value, expected)


def test_per_sample_gradients():
    x, weight, bias = (random(shape, seed).double() for seed, shape in enumerate(([3, 70, 4], [6, 4], [6])))

    def gradients(f):
        loss = torch.func.grad(lambda x, *parameters: f(x, *parameters).square().sum(), argnums=(0, 1, 2))
        return torch.func.vmap(loss, in_dims=(0, None, None))(x, weight, bias)

    for value, expected in zip(gradients(linear), gradients(F.linear), strict=True):
        torch.testing.assert_close(value, expected)


def test_autocast_keeps_the_dtype_of_the_bias():
    x, weight, bias = (random(shape, seed).double() for seed, shape in enumerate(([9, 4], [6, 4], [6])))
    x, weight, bias = (value.float().requires_grad_() for value in (x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x, weight, bias)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert bias.grad.dtype == torch.float32 and torch.equal(bias.grad, torch.full((6,), 9.0))


def test_the_module_is_torchs():
    ours, torchs = Linear(4, 6), torch.nn.Linear(4, 6)
    ours.load_state_dict(torchs.state_dict())
    x = random([3, 5, 4], 0)
    assert torch.equal(ours(x), torchs(x))
