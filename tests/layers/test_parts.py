"""Stems, downsamplers, norms and blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saccade.layers import (
    BatchNorm,
    ConvDownsample,
    ConvTokenizer,
    MixerBlock,
    PatchMerging,
    PatchStem,
)
from saccade.layers.position import pool_map, resize_map
from saccade.layers.stem import _is_ordinary, convolve_filled, project_patches


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 8), (31, 17)])
@pytest.mark.parametrize(("stem", "stride"), [(ConvTokenizer, 4), (PatchStem, 4)])
def test_stem_covers_any_size(stem, stride, size):
    module = stem(2, 8)
    assert module.stride == stride
    assert module(torch.randn(1, 2, *size)).shape == (1, -(-size[0] // stride), -(-size[1] // stride), 8)


@pytest.mark.parametrize(("convolve", "kernel", "padding"), [(convolve_filled, 7, 3), (project_patches, 4, 0)])
def test_convolutions_of_an_image_laid_out_otherwise_are_the_same(convolve, kernel, padding):
    conv = nn.Conv2d(3, 8, kernel, stride=4, padding=padding).double()
    x = torch.randn(2, 3, 13, 18, dtype=torch.float64)
    found, truth = convolve(x, conv), conv(x).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, truth)
    gradients = [torch.autograd.grad(out.sin().sum(), conv.parameters()) for out in (found, truth)]
    torch.testing.assert_close(*gradients)


def test_only_ordinary_convolutions_are_laid_out_otherwise():
    assert _is_ordinary(nn.Conv2d(3, 8, 4, stride=4))
    others = {"bias": False}, {"groups": 3}, {"dilation": 2}, {"padding": "same"}, {"padding_mode": "circular"}
    assert not any(_is_ordinary(nn.Conv2d(3, 9, 3, **options)) for options in others)
    assert not _is_ordinary(nn.LazyConv2d(8, 4))


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 4), (7, 7)])
@pytest.mark.parametrize("downsample", [ConvDownsample, PatchMerging])
def test_downsample_halves_any_size(downsample, size):
    out = downsample(6, 12)(torch.randn(2, *size, 6))
    assert out.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 12)


def test_patch_merging_order():
    """Neighbours are joined column by column: (0, 0), (1, 0), (0, 1), (1, 1)."""
    module = PatchMerging(1, 4)
    module.norm = nn.Identity()
    nn.init.eye_(module.reduction.weight)
    x = torch.arange(9.0).reshape(1, 3, 3, 1)
    assert module(x).tolist() == [[[[0, 3, 1, 4], [2, 5, 0, 0]], [[6, 0, 7, 0], [8, 0, 0, 0]]]]


def test_batch_norm_normalises_channels():
    x = torch.randn(3, 4, 5, 6) * 3 + 2
    out = BatchNorm(6)(x)
    torch.testing.assert_close(out.mean((0, 1, 2)), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.std((0, 1, 2), correction=0), torch.ones(6), atol=1e-4, rtol=0)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_block_places_norm_and_scale():
    x = torch.randn(1, 2, 2, 4)
    # Without norms, x + 0.5 * 2x = 2x, then 2x + 0.5 * 3 * 2x = 5x.
    block = MixerBlock(4, Scale(2), Scale(3), norm=lambda dim: nn.Identity(), layer_scale=0.5)
    torch.testing.assert_close(block(x), 5 * x)
    norm = nn.LayerNorm(4)
    pre = MixerBlock(4, Scale(2), Scale(0))
    torch.testing.assert_close(pre(x), x + 2 * norm(x))
    post = MixerBlock(4, Scale(2), Scale(0), post_norm=True)
    torch.testing.assert_close(post(x), x + norm(2 * x) + norm(torch.zeros_like(x)))


def test_block_without_mixer():
    block = MixerBlock(4, None, Scale(2))
    x = torch.randn(1, 2, 2, 4)
    torch.testing.assert_close(block(x), x + 2 * nn.LayerNorm(4)(x))
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"norm2"}


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (5, 4), (14, 2), (7, 7)])
def test_resampling_is_torchs(size, mode):
    maps = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    out = resize_map(maps, size, mode)
    truth = F.interpolate(maps, size=size, mode=mode, align_corners=False)
    torch.testing.assert_close(out, truth)
    gradients = [torch.autograd.grad(x.square().sum(), maps)[0] for x in (out, truth)]
    torch.testing.assert_close(*gradients)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize_map(maps, size, mode), out)
    assert resize_map(maps, (5, 4)) is maps


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7), (5, 4)])
def test_pooling_is_torchs(size):
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    truth = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    torch.testing.assert_close(pool_map(x, size), truth)
