"""Deformable token merging against the released modules, any size, precision, compilers."""

import json

import pytest
import torch
from torch import nn
from torchvision.ops import deform_conv2d

from saccade.layers import ConvMLP, DeformableMerging
from saccade.layers.deformable_merging import shift

from ..fill import GOLDENS
from ..official_modules import assert_gradients, assert_output, cotangent, fill_by_name, random

CASES = json.loads((GOLDENS / "hilo_ops.json").read_text())["cases"]
CONVOLUTION = {
    "conv.weight": "weight",
    "conv.bias": "bias",
    "offset.weight": "conv_offset.weight",
    "offset.bias": "conv_offset.bias",
}
MERGING = {ours: f"dconv.{official}" for ours, official in CONVOLUTION.items()} | {
    f"norm.{name}": f"norm_layer.{name}" for name in ("weight", "bias", "running_mean", "running_var")
}
MLP = {f"dwconv.{name}": f"dwconv.dwconv.{name}" for name in ("weight", "bias")}


def compare(layer, official, case, x, maps, flat):
    fill_by_name(layer, official)
    out = flat(layer(maps))
    assert_output(out, case)
    if "grad_input" not in case:
        return
    (out * cotangent(case)).sum().backward()
    assert_gradients(case, x.grad, {official.get(key, key): p for key, p in layer.named_parameters()})


def official_input(case):
    return random(case["input"]["shape"], case["input"]["seed"]).requires_grad_()


@pytest.mark.parametrize("case", [c for c in CASES if c["module"] == "DTM"], ids=lambda c: c["name"])
def test_released_merging(case):
    x = official_input(case)
    layer = DeformableMerging(8, 16)
    compare(layer, MERGING, case, x, x.unflatten(1, (case["H"], case["W"])), lambda out: out.flatten(1, 2))


@pytest.mark.parametrize("case", [c for c in CASES if c["module"] == "DeformConv2dPack"], ids=lambda c: c["name"])
def test_released_convolution(case):
    x = official_input(case)
    layer = DeformableMerging(8, 16)
    layer.norm = layer.act = nn.Identity()
    compare(layer, CONVOLUTION, case, x, x.permute(0, 2, 3, 1), lambda out: out.permute(0, 3, 1, 2))


@pytest.mark.parametrize("case", [c for c in CASES if c["module"] == "DWMlp"], ids=lambda c: c["name"])
def test_released_mlp(case):
    x = official_input(case)
    layer = ConvMLP(8, 32)
    compare(layer, MLP, case, x, x.unflatten(1, (case["H"], case["W"])), lambda out: out.flatten(1, 2))


@pytest.mark.parametrize("size", [(2, 2), (6, 9), (13, 4)])
@pytest.mark.parametrize("spread", [0.0, 0.4, 3.0, 40.0])
def test_shifts_as_torchvision_s_deformable_convolution(size, spread):
    """Integer places, fractions, neighbours across the border, and far outside; gradients too."""
    x = random((3, *size, 5), 0).double().requires_grad_()
    offset = spread * random((3, size[0] // 2, size[1] // 2, 8), 1).double()
    offset[:, 0] = offset[:, 0].round()
    weight, bias = random((7, 5, 2, 2), 2).double(), random((7,), 3).double()
    inputs = (x, offset.requires_grad_(), weight.requires_grad_())
    expected = deform_conv2d(x.permute(0, 3, 1, 2), offset.permute(0, 3, 1, 2), weight, bias, stride=2)
    out = nn.functional.conv2d(shift(x, offset).permute(0, 3, 1, 2), weight, bias, stride=2)
    torch.testing.assert_close(out, expected)
    true = torch.autograd.grad(expected.square().sum(), inputs)
    for found, truth, of in zip(torch.autograd.grad(out.square().sum(), inputs), true, "xow", strict=True):
        # The slope along an offset jumps at integer places; each side takes its own.
        keep = offset.detach() != offset.detach().round() if of == "o" else torch.ones_like(truth, dtype=torch.bool)
        torch.testing.assert_close(found[keep], truth[keep])


def test_offsets_that_are_not_numbers_show():
    offset = torch.zeros(1, 1, 1, 8)
    offset[..., 2] = float("nan")
    out = shift(torch.ones(1, 3, 3, 2), offset)
    assert out.isnan().tolist() == [[[[False] * 2, [True] * 2], [[False] * 2] * 2]]


def test_deterministic_mode():
    layer = shaken().train()
    x = random((2, 6, 8, 4), 7).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(layer(x).square().sum(), x)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


def shaken(in_dim=4, dim=8):
    """Return a layer whose offsets are far from zero."""
    torch.manual_seed(0)
    layer = DeformableMerging(in_dim, dim).eval()
    nn.init.normal_(layer.offset.weight)
    return layer


def test_without_offsets_it_is_a_plain_convolution():
    layer = DeformableMerging(4, 8)
    x = random((3, 6, 9, 4), 0)
    plain = nn.functional.conv2d(x.permute(0, 3, 1, 2), layer.conv.weight, layer.conv.bias, stride=2)
    torch.testing.assert_close(layer(x), layer.act(layer.norm(plain.permute(0, 2, 3, 1))))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 8), (7, 5)])
@pytest.mark.parametrize("batch", [0, 1, 5, 7])
def test_any_size_and_batch(size, batch):
    layer = shaken()
    x = random((batch, *size, 4), 1)
    out = layer(x)
    assert out.shape == (batch, *(max(extent // 2, 1) for extent in size), 8)
    assert out.is_contiguous()
    for i in range(batch):
        torch.testing.assert_close(out[i : i + 1], layer(x[i : i + 1]))


def test_one_row_is_padded_with_zeros():
    layer = shaken()
    x = random((2, 1, 6, 4), 2)
    torch.testing.assert_close(layer(x), layer(torch.cat((x, torch.zeros_like(x)), 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    layer = shaken()
    x = random((2, 6, 8, 4), 3)
    expected = layer(x)
    out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=5e-2, rtol=5e-2)


def test_autocast_leaves_the_convolution_alone():
    layer = shaken()
    layer.norm = layer.act = nn.Identity()
    x = random((2, 6, 8, 4), 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        again = layer(x.bfloat16())
    assert out.dtype == again.dtype == torch.float32
    torch.testing.assert_close(out, layer(x))


def test_compile_and_export():
    layer = shaken()
    x = random((2, 6, 9, 4), 5)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_gradients():
    layer = shaken(2, 3).double()
    x = random((1, 4, 5, 2), 6).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
