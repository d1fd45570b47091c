"""FocalNet's configurations beyond what the goldens see: sizes, initialisation, stochastic depth, bad arguments."""

import math

import pytest
import timm
import torch

from saccade.layers import FocalModulation

PLAIN = "focalnet_tiny_srf_fused"
ISOTROPIC = "focalnet_tiny_iso"
SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        (PLAIN, SMALL, [(50, 66), (25, 33), (12, 16), (6, 8)]),
        ("focalnet_large_fl3_fused", SMALL, [(50, 66), (25, 33), (13, 17), (7, 9)]),
        (ISOTROPIC, {"depth": 4}, [(12, 16)] * 4),
    ],
)
def test_classifiers_drop_what_does_not_fill_a_patch(name, options, sizes):
    model = timm.create_model(name, **options)
    maps = model.forward_intermediates(torch.randn(1, 3, 200, 264), intermediates_only=True)
    assert [tuple(value.shape[2:]) for value in maps] == sizes


@pytest.mark.parametrize(
    ("name", "options", "reductions"), [(PLAIN, SMALL, (4, 8, 16, 32)), (ISOTROPIC, {"depth": 12}, (16,) * 4)]
)
@pytest.mark.parametrize("size", [(1, 1), (97, 130), (200, 264)])
def test_backbones_pad_it(name, options, reductions, size):
    """At each step: a padded image gives the same maps."""
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, **options).eval()
    image = torch.randn(1, 3, *size)
    patch = reductions[0]
    padded = torch.nn.functional.pad(image, (0, -size[1] % patch, 0, -size[0] % patch))
    with torch.no_grad():
        for value, same, reduction in zip(model(image), model(padded), reductions, strict=True):
            assert tuple(value.shape[2:]) == tuple(math.ceil(extent / reduction) for extent in size)
            assert torch.equal(value, same)


def test_ceil_mode_is_an_option():
    model = timm.create_model(PLAIN, features_only=True, ceil_mode=False, **SMALL)
    assert [tuple(value.shape[2:]) for value in model(torch.randn(1, 3, 97, 130))][-1] == (3, 4)
    model = timm.create_model(PLAIN, ceil_mode=True, **SMALL)
    assert model.forward_features(torch.randn(1, 3, 97, 130)).shape[1:3] == (4, 5)


def test_initialisation():
    """Linear layers are normal of std 0.02; convolutions, the pointwise one too, keep torch's own initialisation."""
    torch.manual_seed(0)
    model = timm.create_model("focalnet_large_fl3_fused", embed_dim=32, depths=(1, 1, 1, 1))
    block = model.stages[2].blocks[0]
    for linear in (block.mixer.f, block.mixer.proj, block.mlp.fc1, block.mlp.fc2, model.head.fc):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.bias.count_nonzero() == 0
    convolutions = {
        model.stem.conv: 3 * 49,
        model.stages[1].downsample.conv: 32 * 9,
        block.mixer.h: 128,
        block.mixer.focal_layers[1][0]: 49,
    }
    for module, fan_in in convolutions.items():
        # Uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in).
        assert module.weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.05)
    assert torch.equal(block.ls2.gamma, torch.full((128,), 1e-4))


@pytest.mark.parametrize(("name", "rate"), [(PLAIN, 0.2), ("focalnet_huge_fl4_fused", 0.5), (ISOTROPIC, 0.2)])
def test_stochastic_depth_rises_over_the_blocks(name, rate):
    with torch.device("meta"):
        model = timm.create_model(name)
    blocks = [module for key, module in model.named_modules() if type(module).__name__ == "MixerBlock"]
    for block, expected in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for drop_path in (block.drop_path1, block.drop_path2):
            assert getattr(drop_path, "drop_prob", 0.0) == pytest.approx(expected)


def test_settings_of_each_stage():
    model = timm.create_model(PLAIN, **SMALL, focal_levels=(1, 2, 3, 4), focal_windows=(11, 9, 9, 7), focal_factor=4)
    mixers = [module for module in model.modules() if isinstance(module, FocalModulation)]
    kernels = [[layer[0].kernel_size[0] for layer in mixer.focal_layers] for mixer in mixers]
    assert kernels == [[11], [9, 13], [9, 13, 17], [7, 11, 15, 19]]


@pytest.mark.parametrize("argument", ["focal_levels", "focal_windows"])
def test_settings_for_another_number_of_stages(argument):
    with pytest.raises(ValueError, match=rf"{argument}=\(3, 3, 3\).* one for each of the 4 stages"):
        timm.create_model(PLAIN, **{argument: (3, 3, 3)})


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("focalnet_nano").parameters()) < 1e6
