"""Autocast chooses the dtype that operators read and write, not the one they compute in."""

import pytest
import torch
from neighborhood_cases import distance

from saccade.kernels.agent import agent_attention
from saccade.kernels.linear import linear_attention
from saccade.kernels.neighborhood import neighborhood_attention
from saccade.kernels.window import window_attention

OPERATORS = {
    "agent": lambda q, k, v: agent_attention(q, k, v, q[:, :2, :2]),
    "linear": lambda q, k, v: linear_attention(q, k, v, "focused"),
    "neighborhood": lambda q, k, v: neighborhood_attention(q, k, v, 3),
    "window": lambda q, k, v: window_attention(q, k, v, 4),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_half_inputs_give_the_same_with_autocast_on(name):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 8, 8, 2, 16).bfloat16().requires_grad_() for _ in range(3)]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = OPERATORS[name](*inputs)
            results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    assert all(distance(value, truth) == 0 for truth, value in zip(*results, strict=True))
