"""FocalNet's parts against the released modules: modulation, block, patch embedding; and the rule for padding."""

import json

import pytest
import torch
from timm.layers import Mlp
from torch.nn import functional as F

import saccade.layers.focal_modulation
from saccade.layers import FocalModulation, MixerBlock, PatchDownsample, PatchStem
from saccade.layers.focal_modulation import filled

from ..fill import GOLDENS
from ..official_modules import assert_gradients, assert_output, cotangent, fill_by_name, random

CASES = json.loads((GOLDENS / "focal_ops.json").read_text())["cases"]
# Parts of our keys -> of the official ones.
NAMES = {"mixer": "modulation", "conv": "proj", "ls1": "gamma_1", "ls2": "gamma_2", "gamma": ""}


def block(dim, input_resolution, use_layerscale=False, use_postln=False, drop_path=0.0, **kwargs):
    layer_scale = 1e-4 if use_layerscale else None
    mixer = FocalModulation(dim, **kwargs)
    return MixerBlock(dim, mixer, Mlp(dim, 4 * dim), layer_scale=layer_scale, drop_path=drop_path, post_norm=use_postln)


def patch_embed(patch_size, in_chans, embed_dim, is_stem=False, use_conv_embed=False, img_size=None, norm_layer=None):
    overlap = {"kernel": 2 * patch_size - 1, "padding": patch_size // 2} if use_conv_embed else {}
    stage = PatchStem if is_stem else PatchDownsample
    return stage(in_chans, embed_dim, patch_size, ceil_mode=False, **overlap)


BUILD = {"FocalModulation": FocalModulation, "FocalNetBlock": block, "PatchEmbed": patch_embed}


def official_name(key):
    return ".".join(filter(None, (NAMES.get(part, part) for part in key.split("."))))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_released_module(case):
    if "error" in case:
        with pytest.raises(
            ValueError, match=r"focal_window=4 and focal_factor=2 make kernels of \[4, 6\]; all must be"
        ):
            BUILD[case["module"]](**case["kwargs"])
        return
    module = BUILD[case["module"]](**case["kwargs"])
    embeds = case["module"] == "PatchEmbed"
    names = {key: official_name(key) if case["module"] != "FocalModulation" else key for key in module.state_dict()}
    fill_by_name(module, names)
    assert {names[key]: list(p.shape) for key, p in module.state_dict().items()} == case["state"]
    x = random(case["input"]["shape"], case["input"]["seed"]).requires_grad_()
    if case["module"] == "FocalNetBlock":
        out = module(x.unflatten(1, (case["H"], case["W"]))).flatten(1, 2)
    elif embeds:
        stem = not isinstance(module, PatchDownsample)
        out = module(x if stem else x.permute(0, 2, 3, 1)).flatten(1, 2)
    else:
        out = module(x)
    assert_output(out, case)
    (out * cotangent(case)).sum().backward()
    assert_gradients(case, x.grad, {names[key]: p for key, p in module.named_parameters()})


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (14, 14)])
@pytest.mark.parametrize("levels", [0, 1, 4])
def test_any_map(size, levels):
    layer = FocalModulation(6, focal_window=5, focal_level=levels)
    x = random([2, *size, 6], 0)
    out = layer(x)
    assert out.shape == x.shape
    # One projection, one product: with the context away, the output is its bias alone.
    torch.nn.init.zeros_(layer.h.weight)
    torch.nn.init.zeros_(layer.h.bias)
    assert torch.equal(layer(x), layer.proj.bias.expand_as(out))


@pytest.mark.parametrize("shape", [(7, 3), (7,), (1, 2)])
def test_spare_entries_get_no_gradient(shape):
    x = random(shape, 0).requires_grad_()
    out = filled(x, 9)
    assert torch.equal(out[: len(x)], x) and torch.equal(out[len(x) :], x[-1:].expand(9, *shape[1:]))
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_options_reach_the_operator(monkeypatch):
    calls = []

    def record(projected, weights, point_weight, point_bias, normalize):
        calls.append((projected, weights, point_weight, point_bias, normalize))
        return projected[..., :8]

    monkeypatch.setattr(saccade.layers.focal_modulation, "focal_modulation", record)
    layer = FocalModulation(8, 5, 3, focal_factor=4, bias=False, normalize_modulator=True, proj_drop=1.0)
    assert layer(random([1, 4, 5, 8], 0)).count_nonzero() == 0
    projected, weights, point_weight, point_bias, normalize = calls[0]
    assert normalize
    assert [weight.shape[-1] for weight in weights] == [5, 9, 13]
    # Query, context and gates as one projection gives them.
    assert projected.shape == (1, 4, 5, 8 + 8 + 4) and projected.is_contiguous()
    assert torch.equal(point_weight, layer.h.weight[..., 0, 0]) and point_bias is None
    assert layer.f.bias is None and layer.h.bias is None and layer.proj.bias is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"focal_window": 2}, r"focal_window=2 and focal_factor=2 make kernels of \[2, 4\]; all must be odd"),
        ({"focal_window": 3, "focal_factor": 1}, r"focal_factor=1 make kernels of \[3, 4\]; all must be odd"),
        ({"focal_window": -1}, r"make kernels of \[-1, 1\]; all must be odd: an odd window of at least 1"),
        ({"focal_level": -1}, "focal_level=-1 must be at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FocalModulation(8, **arguments)


@pytest.mark.parametrize("kernel", [None, 7])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (30, 45), (31, 17), (32, 64)])
def test_ceil_mode(size, kernel):
    """With it an image gives what its zero-padded version gives; without, what the convolution alone gives."""
    padding = 2 if kernel else 0
    ceil, floor = (PatchStem(2, 8, kernel=kernel, padding=padding, ceil_mode=mode) for mode in (True, False))
    floor.load_state_dict(ceil.state_dict())
    x = random([1, 2, *size], 0)
    padded = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
    torch.testing.assert_close(ceil(x), floor(padded))
    assert ceil(x).shape[1:3] == (-(-size[0] // 4), -(-size[1] // 4))
    smallest = 3 if kernel else 4
    padded = F.pad(x, (0, max(smallest - size[1], 0), 0, max(smallest - size[0], 0)))
    torch.testing.assert_close(floor(x), floor.norm(floor.conv(padded).permute(0, 2, 3, 1)))
