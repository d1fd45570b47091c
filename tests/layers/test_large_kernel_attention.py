"""VAN's parts against the released modules: attention, MLP, block, and overlapping patches."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from saccade.layers import BatchNorm, ConvMLP, LargeKernelAttention, MixerBlock, PatchDownsample, PatchStem

from ..fill import GOLDENS
from ..official_modules import assert_gradients, assert_output, cotangent, fill_by_name, random

CASES = [case for case in json.loads((GOLDENS / "lka_ops.json").read_text())["cases"] if case["module"] != "LKA"]
# Between the dots of a key: ours -> official.
NAMES = {
    "mixer": "attn",
    "proj_in": "proj_1",
    "local": "spatial_gating_unit.conv0",
    "spatial": "spatial_gating_unit.conv_spatial",
    "point": "spatial_gating_unit.conv1",
    "proj": "proj_2",
    "dwconv": "dwconv.dwconv",
    "conv": "proj",
    "ls1": "layer_scale_1",
    "ls2": "layer_scale_2",
    "gamma": "",
}


def attention(d_model):
    return LargeKernelAttention(d_model)


def mlp(in_features, hidden_features):
    return ConvMLP(in_features, hidden_features)


def block(dim, mlp_ratio, drop_path=0.0):
    return MixerBlock(dim, attention(dim), mlp(dim, dim * mlp_ratio), BatchNorm, layer_scale=1e-2, drop_path=drop_path)


def patch_embed(patch_size, stride, in_chans, embed_dim):
    stage = PatchStem if stride == 4 else PatchDownsample
    sizes = {"patch": stride, "kernel": patch_size, "padding": patch_size // 2}
    return stage(in_chans, embed_dim, norm=BatchNorm, ceil_mode=False, **sizes)


BUILD = {"Attention": attention, "Mlp": mlp, "Block": block, "OverlapPatchEmbed": patch_embed}


def official_name(key):
    return ".".join(filter(None, (NAMES.get(part, part) for part in key.split("."))))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_released_module(case):
    module = BUILD[case["module"]](**case["kwargs"])
    names = {key: official_name(key) for key in module.state_dict()}
    assert {names[key] for key in module.state_dict()} == case["state"].keys()
    fill_by_name(module, names)
    image = random(case["input"]["shape"], case["input"]["seed"]).requires_grad_()
    stem = isinstance(module, PatchStem) and not isinstance(module, PatchDownsample)
    out = module(image if stem else image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_output(out, case)
    (out * cotangent(case)).sum().backward()
    assert_gradients(case, image.grad, {names[key]: p for key, p in module.named_parameters()})


def test_other_kernels():
    """Sizes and dilation are settings; torch's modules with the same weights say what they mean."""
    layer = LargeKernelAttention(6, kernel_size=3, dilated_kernel_size=9, dilation=2)
    x = random([2, 10, 7, 6], 0)
    u = F.gelu(layer.proj_in(x))
    convolved = layer.spatial(layer.local(u.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), x + layer.proj(u * layer.point(convolved)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "kernel_size=4 must be odd and at least 1"),
        ({"dilated_kernel_size": -1}, "dilated_kernel_size=-1 must be odd"),
        ({"dilation": 0}, "dilation=0 must be at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LargeKernelAttention(8, **arguments)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_conv_mlp_keeps_the_map(kernel_size):
    layer = ConvMLP(4, 8, kernel_size)
    x = random([2, 3, 5, 4], 0)
    maps = layer.fc1(x).permute(0, 3, 1, 2)
    convolved = F.conv2d(maps, layer.dwconv.weight, layer.dwconv.bias, padding=kernel_size // 2, groups=8)
    hidden = convolved.permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer.fc2(F.gelu(hidden)))
    assert layer(x).shape == x.shape


def test_conv_mlp_drops_in_two_places():
    layer = ConvMLP(4, 8, drop=(0.0, 1.0))
    assert layer.train()(random([1, 3, 3, 4], 0)).count_nonzero() == 0
    layer = ConvMLP(4, 8, drop=(1.0, 0.0))
    nn.init.ones_(layer.fc2.bias)
    assert torch.equal(layer.train()(random([1, 3, 3, 4], 0)), torch.ones(1, 3, 3, 4))
    assert torch.equal(layer.eval()(x := random([1, 3, 3, 4], 1)), layer(x))
