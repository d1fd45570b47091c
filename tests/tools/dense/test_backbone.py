"""saccade.Backbone alone, which needs none of the toolboxes."""

import re

import pytest
import timm
import torch
from torch import nn

from saccade.tools.dense.backbone import Backbone
from saccade.tools.errors import UserError

from ...fill import load_golden, named_tensor, official_state

NANO = ["focalnet_nano", "litv2_nano", "nat_nano", "van_nano"]


def image(height: int = 72, width: int = 100) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*NANO, "resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_maps_of_any_size(name):
    """Maps at strides 4 to 32 that timm's own features are, contiguous for the toolboxes' operators."""
    torch.manual_seed(0)
    backbone = Backbone(name).eval()
    assert backbone.strides == [4, 8, 16, 32]
    for height, width in ((64, 64), (72, 100)):
        maps = backbone(image(height, width))
        for feature, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
            assert feature.shape[:2] == (2, channels) and feature.is_contiguous()
            assert all(
                size // stride <= got <= -(-size // stride)
                for size, got in zip((height, width), feature.shape[2:], strict=True)
            )
    theirs = timm.create_model(name, features_only=True, out_indices=backbone.out_indices).eval()
    state = dict(zip(theirs.state_dict(), backbone.body.state_dict().values(), strict=True))
    theirs.load_state_dict(state)
    x = image(224, 224)
    for ours, true in zip(backbone(x), theirs(x), strict=True):
        torch.testing.assert_close(ours, true if true.shape == ours.shape else true.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["dla34", "hrnet_w18_small", "maxvit_rmlp_pico_rw_256"])
def test_models_that_take_few_sizes(name):
    """What is padded is cut off again; at their own sizes nothing is padded."""
    torch.manual_seed(0)
    backbone = Backbone(name, size_divisor=256 if "maxvit" in name else 32).eval()
    with torch.no_grad():
        maps = backbone(image(70, 101)[:1])
        assert [tuple(feature.shape[2:]) for feature in maps] == [(18, 26), (9, 13), (5, 7), (3, 4)]
        x = image(256, 256)[:1]
        for padded, plain in zip(backbone(x), backbone.body(x), strict=True):
            assert torch.equal(padded, plain)


@pytest.mark.parametrize("name", [*NANO, "resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_every_parameter_learns(name):
    """Training in parallel needs that."""
    backbone = with_gradients(Backbone(name, drop_path_rate=0.0).train())
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_features_at_one_stride_only():
    backbone = Backbone("vit_tiny_patch16_224", depth=3).eval()
    assert (backbone.strides, backbone.out_indices) == ([16], (2,))
    assert backbone(image(70, 90))[0].shape == (2, 192, 5, 6)


def test_chosen_maps():
    backbone = Backbone("nat_nano", out_indices=(1, 2), out_norms=True)
    assert (backbone.channels, backbone.strides) == ([32, 64], [8, 16])
    assert not hasattr(backbone.model.stages, "3")
    assert all(parameter.grad is not None for parameter in with_gradients(backbone).parameters())


def with_gradients(backbone: Backbone) -> Backbone:
    sum(feature.square().mean() for feature in backbone(image())).backward()
    return backbone


@pytest.mark.parametrize("name", ["nat_nano", "swin_tiny_patch4_window7_224"])
def test_norms_of_maps(name):
    """Ours and timm's models get a LayerNorm over channels on the maps that are named, and learn it."""
    torch.manual_seed(0)
    plain, normed = Backbone(name).eval(), Backbone(name, out_norms=(0, 2)).eval()
    normed.load_state_dict(plain.state_dict(), strict=False)
    for index, (a, b) in enumerate(zip(plain(image()), normed(image()), strict=True)):
        if index in (0, 2):
            a = nn.functional.layer_norm(a.permute(0, 2, 3, 1), (a.shape[1],)).permute(0, 3, 1, 2)
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
    assert len(list(normed.parameters())) == len(list(plain.parameters())) + 4


@pytest.mark.parametrize("name", ["nat_nano", "van_nano", "resnet18"])
def test_frozen_stages(name):
    backbone = Backbone(name, frozen_stages=2, drop_path_rate=0.9).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with torch.no_grad():
        first, again = backbone(image()), backbone(image())
    assert torch.equal(first[1], again[1])  # no drop path in what is frozen
    optimizer = torch.optim.SGD((p for p in backbone.parameters() if p.requires_grad), lr=0.1)
    with_gradients(backbone)
    optimizer.step()
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    still = ("stem", "conv1", "bn1", "stages.0", "stages.1", "layer1", "layer2")
    assert changed and not any(key.removeprefix("body.model.").startswith(still) for key in changed)
    assert backbone.eval().training is False
    assert sum(p.requires_grad for p in Backbone(name).parameters()) == len(list(backbone.parameters()))


def test_batch_norms_in_evaluation_mode():
    backbone = Backbone("van_nano", norm_eval=True).train()
    modes = {type(module).__name__: module.training for module in backbone.modules()}
    assert modes["BatchNorm"] is False and modes["LayerNorm"] is True


@pytest.mark.parametrize(("name", "norms"), [("van_nano", 24), ("resnet18", 20), ("nat_nano", 0)])
def test_norms_over_all_processes(name, norms):
    """The same parameters, the same maps; that statistics are shared is torch's business, on GPUs."""
    torch.manual_seed(0)
    plain, shared = Backbone(name).eval(), Backbone(name, sync_norms=True).eval()
    shared.load_state_dict(plain.state_dict())
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in shared.modules()) == norms
    for a, b in zip(plain(image()), shared(image()), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["nat_nano", "resnet18"])
def test_checkpointing_gives_the_same_gradients(name):
    torch.manual_seed(0)
    plain = Backbone(name, drop_path_rate=0.0)
    saving = Backbone(name, drop_path_rate=0.0, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    for a, b in zip(with_gradients(plain).parameters(), with_gradients(saving).parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_official_file_as_initialisation(tmp_path):
    """FocalNet-T's classification file in a backbone with larger windows: its kernels in the middle of zeros."""
    golden = load_golden("focalnet", "focalnet_tiny_srf")
    state = official_state(golden)
    torch.save({"model": state}, tmp_path / "official.pth")
    file = str(tmp_path / "official.pth")
    backbone = Backbone("focalnet_tiny_srf_fused", pretrained=file, out_norms=True, focal_windows=9)
    norm = backbone.model.out_norms[0].weight.clone()
    backbone.init_weights()
    kernel = backbone.model.stages[0].blocks[0].mixer.focal_layers[0][0].weight
    assert kernel.shape[-1] == 9
    official = state["layers.0.blocks.0.modulation.focal_layers.0.0.weight"]
    assert torch.equal(kernel[..., 3:6, 3:6], official)
    assert kernel.square().sum() == official.square().sum()
    assert torch.equal(backbone.model.out_norms[0].weight, norm)  # which the file lacks
    assert torch.equal(backbone.model.stages[3].blocks[1].mlp.fc2.bias, state["layers.3.blocks.1.mlp.fc2.bias"])


def test_released_weights_of_a_tag(monkeypatch):
    """`pretrained` may name the tag of another model, as DiNAT-L's backbone of Mask2Former does; window 11 fits it."""
    wanted = []

    def fetch(model, pretrained_cfg, **options):
        wanted.append(pretrained_cfg["url"])
        nn.init.constant_(model.stem.norm.bias, 7.0)

    monkeypatch.setattr("timm.models._builder.load_pretrained", fetch)
    backbone = Backbone("nat_nano", pretrained="nat_mini.shi_in1k")
    backbone.init_weights()
    assert wanted[0].endswith("nat_mini.pth") and (backbone.model.stem.norm.bias == 7).all()


def test_no_weights_to_load_leaves_them_fresh():
    backbone = Backbone("nat_nano")
    before = [parameter.clone() for parameter in backbone.parameters()]
    backbone.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "nat_tyny"}, "unknown model 'nat_tyny': did you mean nat_tiny"),
        ({"name": "nat_nano", "out_indices": (0, 7)}, "name=nat_nano, out_indices=(0, 7), {}: feature index 7"),
        (
            {"name": "nat_nano", "out_norms": (5,)},
            "name=nat_nano, out_indices=None, {'out_norms': (5,)}: out_norms=(5,)",
        ),
        (
            {"name": "resnet18", "out_norms": (9,)},
            "out_norms=(9,) is not valid: it must be a bool or among (1, 2, 3, 4)",
        ),
        ({"name": "nat_nano", "frozen_stages": 5}, "frozen_stages=5 is not valid: nat_nano has 4 stages"),
        (
            {"name": "nat_nano", "pretrained": "no.pth"},
            "pretrained=no.pth is not valid: it must be True, False, a file",
        ),
        ({"name": "nat_nano", "size_divisor": 0}, "size_divisor=0 is not valid: it must be at least 1"),
        ({"name": "nat_nano", "dilation": 3}, "name=nat_nano, out_indices=None, {'dilation': 3}: "),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(UserError, match="^" + re.escape(message)) as error:
        Backbone(**options)
    assert "\n" not in str(error.value)


def test_bad_weights(tmp_path):
    state = {
        key: named_tensor(key, list(value.shape)) for key, value in timm.create_model("van_nano").state_dict().items()
    }
    torch.save(state, tmp_path / "van.pth")
    backbone = Backbone("nat_nano", pretrained=str(tmp_path / "van.pth"))
    with pytest.raises(UserError, match=r"^name=nat_nano, pretrained=.*van.pth: .*does not fit this NAT"):
        backbone.init_weights()
    with pytest.raises(UserError, match=r"fetch van_b5_22k\.pth from"):
        Backbone("van_b5", pretrained="van_b5.van_in22k").init_weights()
