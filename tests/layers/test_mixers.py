"""The token mixers by name: each stands alone, takes what it says it takes, and says so of what it does not."""

import pytest
import torch
from torch import nn

from saccade.layers import (
    MIXERS,
    NeighborhoodAttention,
    build_mixer,
    mixer_parameters,
    register_mixer,
    takes_tokens,
)

each = pytest.mark.parametrize("name", sorted(MIXERS))


@each
@pytest.mark.parametrize("size", [(3, 9), (1, 1), (8, 8)])
def test_keeps_the_map(name, size):
    x = torch.randn(2, *size, 16, requires_grad=True)
    mixer = build_mixer(name, 16, 2)
    out = mixer(x)
    assert out.shape == x.shape and out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert [key for key, p in mixer.named_parameters() if p.grad is None] == []


@each
def test_class_tokens(name):
    """Mixers around a core take tokens, a class token too, which sees the map; those that do not take maps only."""
    mixer = build_mixer(name, 16, 2, {"num_prefix_tokens": 1, "grid": (3, 4)})
    if name != "cross_shaped" and "num_prefix_tokens" in mixer_parameters(name):
        assert takes_tokens(mixer)
    if takes_tokens(mixer):
        tokens = torch.randn(1, 13, 16)
        moved = tokens.index_add(1, torch.tensor([7]), torch.randn(1, 1, 16))
        assert not torch.allclose(mixer(tokens, (3, 4))[:, 0], mixer(moved, (3, 4))[:, 0], rtol=0, atol=1e-9)


@each
def test_unknown_hyper_parameter(name):
    with pytest.raises(ValueError, match=rf"nope=3 is no hyper-parameter of mixer '{name}'; valid: (?!.*\bdim\b).*\w"):
        build_mixer(name, 16, 2, nope=3)


def test_hyper_parameters_of_the_core():
    assert build_mixer("cross_shaped", 16, 2, core="agent", agent_num=4).branches[0].core.agent_grid == (2, 2)
    with pytest.raises(ValueError, match="agent_num=4 is no hyper-parameter of mixer 'cross_shaped'; valid: core, "):
        build_mixer("cross_shaped", 16, 2, agent_num=4)


def test_unknown_mixer():
    for name in ("nope", None, ["na"]):
        with pytest.raises(ValueError, match=r"mixer=.* is unknown; valid: agent, .*, na, .*window"):
            build_mixer(name, 16, 2)


def test_offers():
    """A mixer gets of them what it has; what its name or its hyper-parameters settle stands."""
    offers = {"num_heads": 4, "window": 3, "dilation": 2, "rel_pos_bias": False, "unheard_of": None}
    na = build_mixer("na", 16, offers=offers, window=5)
    assert (na.num_heads, na.window, na.dilation, na.rpb) == (4, (5, 5), (2, 2), None)
    assert build_mixer("dina", 16, 2, offers).dilation is None
    assert build_mixer("dina", 16, 2, offers, dilation=2).dilation == (2, 2)
    assert not hasattr(build_mixer("lka", 16, offers=offers), "num_heads")


@pytest.mark.parametrize(("size", "dilation"), [((7, 30), (1, 4)), ((20, 6), (2, 1)), ((2, 21), (1, 3))])
def test_dina_reaches_across_the_map(size, dilation):
    """The dilation is the largest that fits."""
    torch.manual_seed(0)
    mixer = build_mixer("dina", 16, 2)
    fixed = NeighborhoodAttention(16, 2, dilation=dilation)
    fixed.load_state_dict(mixer.state_dict())
    x = torch.randn(1, *size, 16)
    assert torch.equal(mixer(x), fixed(x))
    assert "dilation=None" in repr(mixer)


def test_names_are_registered_once():
    with pytest.raises(ValueError, match=r"name='na' is taken by the mixer .*NeighborhoodAttention"):

        @register_mixer("na")
        class Identity(nn.Identity):
            pass

    assert MIXERS["na"] is NeighborhoodAttention
