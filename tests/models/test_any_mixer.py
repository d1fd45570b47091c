"""Any mixer in any body: each by name, at any size, forward and backward, with its hyper-parameters."""

import pytest
import timm
import torch

from saccade.layers import MIXERS, CrossShapedAttention, NeighborhoodAttention, WindowAttention
from saccade.layers.gated import GatedMixer
from saccade.layers.qkv import QKVMixer, QKVReducedMixer
from saccade.models.hosts.cswin import CSwin
from saccade.models.hosts.deit import DeiT
from saccade.models.hosts.plain import PlainPyramid
from saccade.models.hosts.pvt import PVT
from saccade.models.hosts.pvt_v2 import PVTv2
from saccade.models.hosts.swin import Swin
from saccade.models.nat import NAT

REGISTERED = {
    "pyramid_nano": None,
    "pyramid_tiny": None,
    "nat_nano": None,
    "any_deit_tiny": 5_717_416,
    "any_pvt_tiny": 13_227_240,
    "any_pvt_v2_b0": 3_666_760,
    "any_swin_tiny": 28_288_354,
    "any_cswin_tiny": 20_393_320,
}
# The bodies in small, of the widths a head has in the registered ones.
PVT_SIZES = {"embed_dims": (16, 32, 80, 128), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 5, 8)}
BODIES = {
    "deit": lambda **kwargs: DeiT(dim=48, num_heads=3, depth=2, **kwargs),
    "pvt": lambda **kwargs: PVT(**PVT_SIZES, **kwargs),
    "pvt_v2": lambda **kwargs: PVTv2(**PVT_SIZES, **kwargs),
    "swin": lambda **kwargs: Swin(embed_dim=24, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8), **kwargs),
    "cswin": lambda **kwargs: CSwin(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 8, 16), **kwargs),
    "plain": lambda **kwargs: PlainPyramid(embed_dims=(16, 32, 48), depths=(2, 1, 1), num_heads=(2, 4, 6), **kwargs),
    "nat": lambda **kwargs: NAT(embed_dim=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2, **kwargs),
}  # fmt: skip
each_mixer = pytest.mark.parametrize("mixer", sorted(MIXERS))


@each_mixer
@pytest.mark.parametrize("body", BODIES)
def test_every_mixer_in_every_body(body, mixer):
    """At sizes that the body was not made for, odd ones too, with a gradient for every parameter."""
    torch.manual_seed(0)
    model = BODIES[body](mixer=mixer, img_size=64, num_classes=5)
    logits = model(torch.randn(2, 3, 45, 98))
    assert logits.shape == (2, 5)
    logits.square().mean().backward()
    wrong = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert wrong == []
    with torch.no_grad():
        final, maps = model.eval().forward_intermediates(torch.randn(1, 3, 32, 32))
    assert final.isfinite().all() and all(value.isfinite().all() for value in maps)


@each_mixer
def test_features_of_the_registered_pyramid(mixer):
    model = timm.create_model("pyramid_tiny", mixer=mixer, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 70, 33))
    assert [value.shape[1:] for value in maps] == [(64, 18, 9), (128, 9, 5), (256, 5, 3), (512, 3, 2)]
    assert all(value.isfinite().all() for value in maps)


@each_mixer
@pytest.mark.parametrize("name", REGISTERED)
def test_registered_bodies_take_every_mixer(name, mixer):
    """Their numbers of channels and heads suit all; with few blocks, on the meta device."""
    few = {"depth": 2} if "deit" in name else {"depths": (1, 1, 2, 1)}
    with torch.device("meta"):
        model = timm.create_model(name, mixer=mixer, num_classes=3, **few)
        assert model(torch.empty(2, 3, 250, 190)).shape == (2, 3)


@pytest.mark.parametrize(("name", "parameters"), [case for case in REGISTERED.items() if case[1]])
def test_published_bodies(name, parameters):
    """Unless told, they are what they were published as."""
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    timms = {"any_deit_tiny": "deit_tiny_patch16_224", "any_swin_tiny": "swin_tiny_patch4_window7_224"}
    timms |= {"any_pvt_v2_b0": "pvt_v2_b0"}
    if name in timms:
        with torch.device("meta"):
            theirs = timm.create_model(timms[name])
        assert sum(p.numel() for p in theirs.parameters()) == parameters
    mixers = [module for module in model.modules() if isinstance(module, (WindowAttention, CrossShapedAttention))]
    if name == "any_swin_tiny":
        assert [mixer.shift for mixer in mixers] == [False, True] * 6
    if name == "any_cswin_tiny":
        assert {branch.stripe for mixer in mixers for branch in mixer.branches} == {1, 2, 7, None}
    if name == "any_pvt_tiny":
        ratios = [block.mixer.sr_ratio for stage in model.stages for block in stage.blocks]
        assert ratios == [8, 8, 4, 4, 2, 2, 1, 1]


def test_a_mixer_for_each_stage():
    model = timm.create_model("pyramid_nano", mixer=("lka", "na", "agent", "mala"), mixer_kwargs=[
        {"kernel_size": 3}, {"window": 3}, {"agent_num": 4}, {}])  # fmt: skip
    mixers = [stage.blocks[0].mixer for stage in model.stages]
    assert mixers[0].local.kernel_size == (3, 3)
    assert isinstance(mixers[1], NeighborhoodAttention) and mixers[1].window == (3, 3)
    assert isinstance(mixers[2], QKVMixer) and mixers[2].core.agent_grid == (2, 2)
    assert isinstance(mixers[3], GatedMixer)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


def test_what_bodies_offer():
    """PVT reduces the keys' map of its own attention alone, CSwin has stripes for cores, NAT's windows are its own."""
    pvt = timm.create_model("any_pvt_tiny", mixer="agent")
    assert isinstance(pvt.stages[0].blocks[0].mixer, QKVReducedMixer) and pvt.stages[0].blocks[0].mixer.sr_ratio == 1
    cswin = timm.create_model("any_cswin_tiny", mixer=["focused", "hilo", "softmax", "na"])
    kinds = [type(stage.blocks[0].mixer).__name__ for stage in cswin.stages]
    assert kinds == ["CrossShapedAttention", "HiLo", "CrossShapedAttention", "NeighborhoodAttention"]
    nat = timm.create_model("nat_nano", mixer=["na", "window", "dina", "hilo"], window=5)
    first = [stage.blocks[0].mixer for stage in nat.stages]
    assert [first[i].window for i in range(4)] == [(5, 5), (7, 7), (5, 5), 2]
    assert first[0].dilation == (1, 1) and first[2].dilation is None
    shifts = [block.mixer.shift for block in timm.create_model("pyramid_tiny", mixer="window").stages[2].blocks]
    assert shifts == [False, True] * 3


@pytest.mark.parametrize(("mixer", "tokens"), [("agent", True), ("rala", True), ("na", False), ("hilo", False)])
def test_class_token_of_deit(mixer, tokens):
    """A body whose mixer takes maps only has none, and averages."""
    model = timm.create_model("any_deit_tiny", mixer=mixer, depth=2).eval()
    assert hasattr(model, "cls_token") == tokens == (model.num_prefix_tokens == 1)
    assert model.global_pool == ("token" if tokens else "avg")
    x = torch.randn(1, 3, 48, 80)
    features = model.forward_features(x)
    assert features.shape == ((1, 16, 192) if tokens else (1, 3, 5, 192))
    if not tokens:
        torch.testing.assert_close(model(x), model.head.fc(features.mean((1, 2))))
    (last,) = model.forward_intermediates(x, 1, intermediates_only=True)
    assert last.shape == (1, 192, 3, 5)
    features = timm.create_model("any_deit_tiny", mixer=mixer, features_only=True, out_indices=(0, 11))(x)
    assert [value.shape for value in features] == [(1, 192, 3, 5)] * 2
    without = timm.create_model("any_deit_tiny", mixer=mixer, class_token=False, depth=1)
    assert without.forward_features(x).shape == (1, 3, 5, 192)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "agnet"}, r"mixer='agnet' is unknown; valid: agent, .*window"),
        ({"mixer": 3}, r"mixer=3 must be one name, or a sequence of one for each of 4 stages"),
        ({"mixer": ["na", "agent"]}, r"mixer=\['na', 'agent'\] must be one name, or a sequence of one for each of 4"),
        ({"mixer": ["na", "na", "na", "no"]}, r"mixer='no' is unknown; valid: agent, .*window"),
        (
            {"mixer": "agent", "mixer_kwargs": {"agents": 4}},
            "agents=4 is no hyper-parameter of mixer '(agent|cross_shaped)'; valid: agent_grid, agent_num, ",
        ),
        ({"mixer": "lka", "mixer_kwargs": {"window": 4}}, "window=4 is no hyper-parameter of mixer 'lka'; valid: dil"),
        ({"mixer_kwargs": [{}]}, "mixer_kwargs=.* must be one mapping, or a sequence of one for each of 4 stages"),
        ({"mixer_kwargs": "window=3"}, "mixer_kwargs='window=3' must be one mapping"),
        ({"mixer": "hilo", "mixer_kwargs": {"alpha": 3}}, "alpha=3 must be from 0 to 1"),
    ],
)
@pytest.mark.parametrize("name", ["pyramid_nano", "nat_nano", "any_cswin_tiny", "any_pvt_v2_b0"])
def test_errors(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "nope"}, "mixer='nope' is unknown; valid: agent"),
        ({"mixer": "na", "class_token": True}, "class_token=True: mixer='na' takes maps only"),
        ({"mixer": "na", "global_pool": "token"}, "global_pool='token' needs a class token"),
        ({"mixer": "agent", "mixer_kwargs": {"x": 1}}, "x=1 is no hyper-parameter of mixer 'agent'"),
    ],
)
def test_errors_of_deit(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("any_deit_tiny", **arguments)


def test_own_checkpoints_load(tmp_path):
    trained = timm.create_model("pyramid_nano", mixer="agent", num_classes=7)
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth"), "num_classes": 7}
    again = timm.create_model(
        "pyramid_nano", mixer="agent", pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay
    )
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval()(x), trained.eval()(x))
    with pytest.raises(ValueError, match="missing: stages"):
        timm.create_model("pyramid_nano", pretrained=True, pretrained_cfg_overlay=overlay)


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("pyramid_nano").parameters()) < 1e6
