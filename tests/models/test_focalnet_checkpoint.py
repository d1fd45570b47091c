"""The ways FocalNet's weights come: official files and their wrappers, timm's models, backbones with other settings."""

import zlib
from functools import cache

import pytest
import timm
import torch

import saccade
from saccade.models.focalnet_checkpoint import checkpoint_filter_fn

from ..fill import golden_image, load_golden, named_tensor, official_state, relative_error
from ..parity import build_around, load_file

TIMM = [name for name in timm.list_pretrained("focalnet_*") if name.split(".")[0] not in saccade.list_models()]


@cache
def noise():
    return 0.01 * torch.randn(2**26, generator=torch.Generator().manual_seed(0))


def named_or_shared(key, shape):
    """Return the tensor of a name; large ones are parts of one, since three billion parameters take time to draw.

    Matrices and kernels have half their usual scale, or thirty blocks would amplify the rounding of the first.
    """
    numel = shape.numel()
    if numel < 2**18:
        return named_tensor(key, list(shape)) / (2 if len(shape) > 1 else 1)
    start = zlib.crc32(key.encode()) % (len(noise()) - numel)
    return noise()[start : start + numel].view(shape)


def random_state(model):
    return {key: named_or_shared(key, value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("tag", TIMM)
def test_weights_of_timm(tag):
    """Every tag that timm has is one of ours; its model and ours agree on logits and maps."""
    name = tag.split(".")[0]
    assert f"{name}_fused.{tag.split('.')[1]}" in timm.list_pretrained("focalnet_*_fused")
    # timm leaves the normalisation of these weights off, the official code has it on.
    options = {"normalize_modulator": True} if name == "focalnet_large_fl4" else {}
    theirs = build_around(name, random_state, **options)
    ours = build_around(
        f"{name}_fused", lambda model: checkpoint_filter_fn(theirs.state_dict(), model), num_classes=theirs.num_classes
    )
    image = golden_image([72, 100], 1)
    with torch.no_grad():
        final, maps = ours.forward_intermediates(image)
        true_final, true_maps = theirs.forward_intermediates(image)
        assert relative_error(ours.forward_head(final), theirs.forward_head(true_final)) < 1e-5
    for value, true in zip(maps, true_maps, strict=True):
        assert value.shape == true.shape
        assert relative_error(value, true) < 1e-5


WRAPPERS = {
    "bare": lambda state: state,
    "official": lambda state: {"model": state, "epoch": 299},
    "distributed": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "teacher": lambda state: {"teacher": state},
    "vision tower": lambda state: {"model": {f"visual.{key}": value for key, value in state.items()}},
    "official, later": lambda state: {"model": {f"vision.{key}": value for key, value in state.items()}},
    "detector": lambda state: {
        "state_dict": {"rpn_head.weight": torch.zeros(1)} | {f"backbone.{key}": v for key, v in state.items()}
    },
    "DINO": lambda state: {
        "model": {"transformer.level_embed": torch.zeros(1)} | {f"backbone.0.{key}": v for key, v in state.items()}
    },
}


@pytest.fixture(scope="module")
def official():
    """Return the state dict of an official FocalNet-T (srf)."""
    return official_state(load_golden("focalnet", "focalnet_tiny_srf"))


def assert_backbones_equal(model, other):
    """Check that two models are the same up to the classifier."""
    image = golden_image(64, 1)
    with torch.no_grad():
        assert torch.equal(model.forward_features(image), other.forward_features(image))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper, official, tmp_path):
    hosted = wrapper in ("detector", "DINO")
    options = {"num_classes": 0} if hosted else {}
    if hosted:
        official = {key: value for key, value in official.items() if not key.startswith("head.")}
    model = load_file("focalnet_tiny_srf_fused", tmp_path / "wrapped.pth", WRAPPERS[wrapper](official), **options)
    own = model.state_dict()
    # Were a tensor not loaded, its values would be those of initialisation.
    assert torch.equal(own["stages.2.downsample.conv.weight"], official["layers.1.downsample.proj.weight"])
    assert torch.equal(own["stages.3.blocks.1.mixer.h.weight"], official["layers.3.blocks.1.modulation.h.weight"])
    if not hosted:
        assert torch.equal(own["head.fc.weight"], official["head.weight"])
    assert_backbones_equal(load_file("focalnet_tiny_srf_fused", tmp_path / "own.pth", own, **options), model)


def test_file_of_timm(tmp_path):
    theirs = timm.create_model("focalnet_tiny_lrf").eval()
    ours = load_file("focalnet_tiny_lrf_fused", tmp_path / "timm.pth", theirs.state_dict())
    image = golden_image(64, 1)
    with torch.no_grad():
        assert relative_error(ours(image), theirs(image)) < 1e-5


def test_other_classes_and_channels(official, tmp_path):
    model = load_file("focalnet_tiny_srf_fused", tmp_path / "f.pth", {"model": official}, num_classes=7, in_chans=1)
    assert model.head.fc.weight.shape == (7, 768)
    summed = official["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(model.stem.conv.weight.data, summed)


@pytest.mark.parametrize("window", [1, 9])
def test_other_windows(window, official, tmp_path):
    """Kernels are padded or cropped about their centre."""
    model = load_file("focalnet_tiny_srf_fused", tmp_path / "f.pth", {"model": official}, focal_windows=window)
    for level in range(2):
        old = official[f"layers.1.blocks.0.modulation.focal_layers.{level}.0.weight"]
        new = model.stages[1].blocks[0].mixer.focal_layers[level][0].weight.detach()
        margin = (window - 3) // 2
        assert new.shape[-1] == window + 2 * level
        if margin > 0:
            assert torch.equal(new[..., margin:-margin, margin:-margin], old)
            assert new.abs().sum() == pytest.approx(old.abs().sum())
        else:
            assert torch.equal(new, old[..., -margin:margin, -margin:margin])
    if window > 3:
        plain = load_file("focalnet_tiny_srf_fused", tmp_path / "f.pth", {"model": official})
        image = golden_image(64, 1)
        with torch.no_grad():
            torch.testing.assert_close(model(image), plain(image))


def test_more_levels(official, tmp_path):
    """A new level's gate is zero; only the context of the whole map, made from the last level, sees it."""
    model = load_file("focalnet_tiny_srf_fused", tmp_path / "f.pth", {"model": official}, focal_levels=4)
    mixer = model.stages[0].blocks[1].mixer
    old_weight, old_bias = (official[f"layers.0.blocks.1.modulation.f.{kind}"] for kind in ("weight", "bias"))
    for new, old in ((mixer.f.weight, old_weight), (mixer.f.bias, old_bias)):
        assert torch.equal(new[:-3], old[:-1])
        assert new[-3:-1].count_nonzero() == 0
        assert torch.equal(new[-1], old[-1])
    assert [layer[0].weight.shape[-1] for layer in mixer.focal_layers] == [3, 5, 7, 9]
    assert all(layer[0].weight.count_nonzero() > 0 for layer in mixer.focal_layers)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda state: state.pop("layers.2.blocks.3.norm1.weight"), {}, r"1 missing: stages.2.blocks.3.norm1.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), {}, r"1 unknown: extra"),
        (
            lambda state: state.pop("layers.0.blocks.0.modulation.focal_layers.1.0.weight"),
            {},
            r"1 missing: stages.0.blocks.0.mixer.focal_layers.1.0.weight",
        ),
        (lambda state: None, {"focal_levels": 1}, r"12 unknown: stages.0.blocks.0.mixer.focal_layers.1.0.weight, .*"),
        (lambda state: None, {"embed_dim": 32}, r"of another shape: .*stages.0.blocks.0.mixer.f.weight \(195, 96\)"),
    ],
)
def test_what_does_not_fit_is_told(change, options, message, official, tmp_path):
    state = dict(official)
    change(state)
    with pytest.raises(ValueError, match=message):
        load_file("focalnet_tiny_srf_fused", tmp_path / "f.pth", {"model": state}, **options)


def test_isotropic_official_file_and_own(tmp_path):
    official = official_state(load_golden("focalnet", "focalnet_tiny_iso"))
    model = load_file("focalnet_tiny_iso", tmp_path / "official.pth", {"model": official})
    own = load_file("focalnet_tiny_iso", tmp_path / "own.pth", model.state_dict())
    assert_backbones_equal(own, model)


def test_classifier_starts_a_detection_backbone(official, tmp_path):
    """Its norms are fresh; its maps are those of the classifier, here at a size that needs no padding."""
    options = {"features_only": True, "out_norms": True, "focal_windows": (11, 9, 9, 7)}
    model = load_file("focalnet_tiny_srf_fused", tmp_path / "f.pth", {"model": official}, **options)
    plain = load_file("focalnet_tiny_srf_fused", tmp_path / "f.pth", {"model": official})
    image = golden_image(64, 1)
    with torch.no_grad():
        for value, true in zip(model(image), plain.forward_intermediates(image, intermediates_only=True), strict=True):
            norm = torch.nn.functional.layer_norm(true.permute(0, 2, 3, 1), true.shape[1:2]).permute(0, 3, 1, 2)
            torch.testing.assert_close(value, norm, rtol=1e-4, atol=1e-4)


def test_weights_without_a_classifier(tmp_path):
    """timm's copy of huge_fl4 has none: its tag makes a model without one, and loads."""
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1)}
    tag = "focalnet_huge_fl4_fused.timm_in22k"
    assert timm.get_pretrained_cfg(tag).hf_hub_id == timm.get_pretrained_cfg("focalnet_huge_fl4").hf_hub_id
    model = timm.create_model(tag, **small)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    loaded = timm.create_model(tag, pretrained=True, pretrained_cfg_overlay=overlay, **small)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
