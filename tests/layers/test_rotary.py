"""Rotary positions, and the mixers that have them."""

import pytest
import torch
from neighborhood_cases import distance
from torch.utils.flop_counter import FlopCounterMode

from saccade.layers import build_core, build_mixer
from saccade.layers.attention_core import Layout

from ..official_modules import random

GATED = ("rala", "mala", "nala", "rotary_softmax")


def layout(grid, key_grid=None, prefixed=0):
    return Layout(grid, key_grid or grid, prefixed, None)


def test_angles():
    """Raw rows and columns times 10000^(-i / (D/4 - 1)), each frequency for two neighbouring channels."""
    queries, keys = build_core("rotary_softmax", 32, 2).turns(torch.empty(0), layout((3, 5), prefixed=1))
    assert queries is keys
    assert queries.shape == (2, 16, 16)
    token = 1 + 2 * 5 + 4
    for channel in range(16):
        angle = torch.tensor((2, 4)[channel // 8] * 10000.0 ** -(channel % 8 // 2 / 3))
        torch.testing.assert_close(queries[:, token, channel], torch.stack((angle.cos(), angle.sin())))
    assert torch.equal(queries[:, 0], torch.stack((torch.ones(16), torch.zeros(16))))


def test_keys_of_a_reduced_map_lie_amid_their_queries():
    core = build_core("rotary_softmax", 8, 1)
    _, keys = core.turns(torch.empty(0), layout((4, 6), (2, 2)))
    rows, columns = torch.tensor([0.5, 0.5, 2.5, 2.5]), torch.tensor([1.0, 4.0, 1.0, 4.0])
    torch.testing.assert_close(keys[:, :, 0], torch.stack((rows.cos(), rows.sin())))
    torch.testing.assert_close(keys[:, :, 4], torch.stack((columns.cos(), columns.sin())))


def test_frequencies_stay_precise():
    core = build_core("rala", 64, 1)
    frequency = core.frequency.clone()
    assert torch.equal(core.to(torch.bfloat16).frequency, frequency)
    assert core.double().frequency.dtype == torch.float64


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3)])
def test_any_map(name, size):
    mixer = build_mixer(name, 16, 2)
    x = random([2, *size, 16], 0).requires_grad_()
    out = mixer(x)
    out.square().sum().backward()
    assert out.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("name", GATED)
def test_tokens_of_a_map_and_prefix_tokens(name):
    mixer = build_mixer(name, 16, 2)
    x = random([2, 3, 4, 16], 0)
    assert torch.equal(mixer(x.flatten(1, 2), (3, 4)), mixer(x).flatten(1, 2))
    first = random([2, 1, 16], 1)
    out = mixer(torch.cat((first, x.flatten(1, 2)), 1), (3, 4))
    assert out.shape == (2, 13, 16)
    with torch.inference_mode():
        assert distance(mixer(x), mixer(x.clone())) == 0
        assert distance(mixer(torch.cat((first, x.flatten(1, 2)), 1), (3, 4)), out) < 1e-6


@pytest.mark.parametrize("name", GATED[:3])
def test_cost_grows_linearly(name):
    mixer = build_mixer(name, 16, 2)
    flops = []
    for extent in (64, 128):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mixer(random([1, extent, 8, 16], 0))
        flops.append(counter.get_total_flops())
    assert flops[0] < flops[1] <= 2.01 * flops[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gate": "relu"}, "gate='relu' is unknown; valid: linear, silu"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"num_heads": 8}, r"dim=16 must be a multiple of 4 \* num_heads"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_mixer("rala", 16, **{"num_heads": 2, **arguments})
