"""What distinguishes the variants of the NAT family, and how their checkpoints come in."""

import pytest
import timm
import torch
import torch.nn.functional as F

import saccade
from saccade.layers import GlobalAttention, MixerBlock, NeighborhoodAttention
from saccade.models.nat_checkpoint import checkpoint_filter_fn

from ..fill import golden_image, load_golden, official_state
from ..parity import load_file

# As measured on the official models, with 1000 classes.
PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_large_384": 200_943_514,
    "dinat_large_384_11x11": 201_144_250,
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
    "dinat_s_large_384": 196_532_476,
    "nat_isotropic_small": 21_999_736,
    "nat_isotropic_base": 86_465_800,
    "dinat_isotropic_small": 21_999_736,
    "dinat_isotropic_base": 86_465_800,
    "vit_rpb_small": 22_080_376,
    "vit_rpb_base": 86_627_080,
}

NONE = [1]
DILATIONS = {
    "nat_tiny": [NONE * 3, NONE * 4, NONE * 18, NONE * 5],
    "dinat_mini": [[1, 8, 1], [1, 4] * 2, [1, 2] * 3, NONE * 5],
    "dinat_large": [[1, 8, 1], [1, 4] * 2, [1, 2] * 9, NONE * 5],
    "dinat_large_384": [[1, 13, 1], [1, 6] * 2, [1, 3] * 9, NONE * 5],
    "dinat_large_384_11x11": [[1, 8, 1], [1, 4] * 2, [1, 2] * 9, NONE * 5],
    "dinat_s_tiny": [[1, 8], [1, 4], [1, 2] * 3, NONE * 2],
    "dinat_s_large_384": [[1, 13], [1, 6], [1, 3] * 9, NONE * 2],
    "nat_isotropic_small": [NONE * 12],
    "dinat_isotropic_base": [[1, 2] * 6],
}

DROP_PATH = {
    "nat_mini": 0.2,
    "nat_small": 0.3,
    "nat_base": 0.5,
    "dinat_tiny": 0.2,
    "dinat_large": 0.35,
    "dinat_s_tiny": 0.2,
    "dinat_s_small": 0.3,
    "dinat_s_base": 0.5,
    "dinat_s_large_384": 0.35,
    "nat_isotropic_small": 0.1,
    "vit_rpb_base": 0.4,
}


def build_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def blocks(model):
    return [module for module in model.modules() if isinstance(module, MixerBlock)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = build_meta(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert {block.mixer.qkv.in_features // block.mixer.num_heads for block in blocks(model)} == {32}
    assert not list(model.buffers())


@pytest.mark.parametrize("name", DILATIONS)
def test_windows_and_dilations(name):
    mixers = [block.mixer for block in blocks(build_meta(name))]
    assert [mixer.dilation for mixer in mixers] == [(d, d) for stage in DILATIONS[name] for d in stage]
    assert {mixer.window for mixer in mixers} == ({(11, 11)} if "11x11" in name else {(7, 7)})


@pytest.mark.parametrize("name", DROP_PATH)
def test_drop_path(name):
    model = build_meta(name)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks(model)]
    assert rates == pytest.approx(torch.linspace(0, DROP_PATH[name], len(rates)).tolist())
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks(model)]


def test_layer_scale_is_where_the_official_models_have_it():
    names = [name for name in PARAMETERS if any("gamma" in key for key in build_meta(name).state_dict())]
    assert names == ["nat_small", "nat_base", "dinat_base"]
    gamma = timm.create_model("nat_small", depths=(1, 1, 1, 1)).stages[3].blocks[0].ls2.gamma
    assert torch.equal(gamma, torch.full((768,), 1e-5))


def test_initialisation():
    model = timm.create_model("nat_mini")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, (NeighborhoodAttention, GlobalAttention)):
            assert module.rpb.std().item() == pytest.approx(0.02, rel=0.2)


def test_nano():
    model = timm.create_model("nat_nano", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model(golden_image(32, 2)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dilations": [[1, 1], [1, 1], [1, 1]]}, r"dilations=\[\[1, 1\].*\(2, 2, 4, 2\)"),
        ({"window": 8}, "window=8.*needs odd windows"),
        ({"output_stride": 16}, "output_stride=16 must be 32"),
        ({"out_norms": (1, 4)}, r"out_norms=\(1, 4\).*\(0, 1, 2, 3\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("nat_nano", **arguments)


@pytest.fixture(scope="module")
def official():
    return official_state(load_golden("nat", "nat_mini"))


@pytest.fixture(scope="module")
def expected(official):
    """The weights of nat_mini that the official state dict becomes."""
    return checkpoint_filter_fn(official, build_meta("nat_mini"))


def wrap_ema(state):
    return {"state_dict": {key: value * 0 for key, value in state.items()}, "state_dict_ema": state, "epoch": 3}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "optimizer": {"lr": 1.0}},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
        wrap_ema,
    ],
    ids=["state_dict", "model", "ddp", "compiled", "ema"],
)
def test_wrappers(wrap, official, expected, tmp_path):
    model = load_file("nat_mini", tmp_path / "weights.pth", wrap(official))
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key])
    again = checkpoint_filter_fn(wrap(expected), model)
    assert again.keys() == expected.keys()


def test_other_classes_and_channels(official, expected, tmp_path):
    model = load_file("nat_mini", tmp_path / "weights.pth", official, num_classes=5, in_chans=1)
    assert model.head.fc.weight.shape == (5, 512)
    grey = official["patch_embed.proj.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(model.stem.conv1.weight, grey)
    assert torch.equal(model.norm.weight, expected["norm.weight"])


def test_larger_window_resizes_the_bias(official, tmp_path):
    model = load_file("nat_mini", tmp_path / "weights.pth", official, window=11)
    table = official["levels.1.blocks.2.attn.rpb"]
    resized = F.interpolate(table[None], (21, 21), mode="bicubic", align_corners=False)[0]
    assert torch.equal(model.stages[1].blocks[2].mixer.rpb, resized)


def test_dense_backbone_from_classification_weights(official, tmp_path):
    """The trunk is loaded, the norms of the outputs are new."""
    plain = load_file("nat_mini", tmp_path / "weights.pth", official, features_only=True)
    normed = load_file("nat_mini", tmp_path / "weights.pth", official, features_only=True, out_norms=True)
    image = golden_image(64, 1)
    with torch.no_grad():
        for value, reference in zip(normed(image), plain(image), strict=True):
            torch.testing.assert_close(value, F.layer_norm(reference.movedim(1, -1), value.shape[1:2]).movedim(-1, 1))


def without(state, *prefixes):
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize("options", [{}, {"features_only": True}])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "levels.0.blocks.1.norm1"), r"2 missing: stages\.0\.blocks\.1\.norm1\.weight"),
        (lambda s: {**s, "levels.0.blocks.0.gamma1": torch.ones(64)}, r"1 unknown: stages\.0\.blocks\.0\.ls1\.gamma"),
        (lambda s: {**s, "norm0.weight": torch.ones(64)}, r"1 unknown: out_norms\.0\.weight"),
        (
            lambda s: {**s, "levels.2.downsample.norm.weight": torch.ones(3)},
            r"1 of another shape: stages\.3\.downsample\.norm\.weight \(3,\) \(here \(512,\)\)",
        ),
        (lambda s: {"epoch": torch.ones(1)}, r"missing: stem\.conv1\.weight.*1 unknown: epoch"),
    ],
    ids=["missing", "scale", "norms", "shape", "foreign"],
)
def test_what_does_not_fit_is_named(change, message, options, official, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        load_file("nat_mini", tmp_path / "weights.pth", change(official), **options)
    assert "weights.pth" in str(error.value)


def test_unreadable_files(tmp_path):
    overlay = {"file": str(tmp_path / "weights.pth")}
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*weights\.pth.* nat_nano"):
        timm.create_model("nat_nano", pretrained=True, pretrained_cfg_overlay=overlay)
    (tmp_path / "weights.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"nat_nano with the checkpoint .*weights\.pth"):
        timm.create_model("nat_nano", pretrained=True, pretrained_cfg_overlay=overlay)


def test_vit_rpb_at_another_size(tmp_path):
    golden = load_golden("nat", "vit_rpb_small")
    state = official_state(golden)
    model = load_file("vit_rpb_small", tmp_path / "weights.pth", state)
    image = golden_image([160, 96], 1)
    with torch.no_grad():
        expected = model(image)
        model.set_input_size((160, 96))
        assert model.blocks[3].mixer.rpb.shape == (12, 19, 11)
        torch.testing.assert_close(model(image), expected)
        small = load_file("vit_rpb_small", tmp_path / "weights.pth", state, img_size=(160, 96))
        torch.testing.assert_close(small(image), expected)


def test_names_are_registered_with_their_tags():
    tags = {name for name in saccade.list_models("*nat*", pretrained=True) if name.startswith(("nat", "dinat"))}
    assert len(tags) == 23
    assert {"nat_tiny.shi_in1k", "dinat_large.shi_in22k", "dinat_s_large_384.shi_in22k_ft_in1k"} <= tags
    assert timm.get_pretrained_cfg("dinat_large").tag == "shi_in22k_ft_in1k"
    assert timm.get_pretrained_cfg("dinat_large_384").crop_pct == 1.0
