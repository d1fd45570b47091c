"""FocalNet on a CPU against the official module graph of plain torch modules: tokens [B, N, C], modulation in NCHW."""

import pytest
import timm
import torch
from torch import Tensor, nn

from saccade.models.focalnet_checkpoint import checkpoint_filter_fn

from ..speed import assert_same_and_no_slower


class PlainModulation(nn.Module):
    def __init__(self, dim: int, window: int, levels: int):
        super().__init__()
        self.sizes = (dim, dim, levels + 1)
        self.f = nn.Linear(dim, 2 * dim + levels + 1)
        self.h = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Linear(dim, dim)
        self.gelu = nn.GELU()
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False), nn.GELU())
            for k in range(window, window + 2 * levels, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, context, gates = self.f(x).permute(0, 3, 1, 2).contiguous().split(self.sizes, 1)
        total = 0
        for level, layer in enumerate(self.focal_layers):
            context = layer(context)
            total = total + context * gates[:, level : level + 1]
        everywhere = self.gelu(context.mean(2, keepdim=True).mean(3, keepdim=True))
        total = total + everywhere * gates[:, len(self.focal_layers) :]
        return self.proj((q * self.h(total)).permute(0, 2, 3, 1).contiguous())


class PlainBlock(nn.Module):
    def __init__(self, dim: int, window: int, levels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.modulation = PlainModulation(dim, window, levels)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.modulation(self.norm1(x).unflatten(1, size)).flatten(1, 2)
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class PlainPatchEmbed(nn.Module):
    def __init__(self, in_chans: int, dim: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), tuple(x.shape[2:])


class PlainStage(nn.Module):
    def __init__(self, dim: int, depth: int, window: int, levels: int, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(dim, window, levels) for _ in range(depth))
        self.downsample = None if last else PlainPatchEmbed(dim, 2 * dim, 2)

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        for block in self.blocks:
            x = block(x, size)
        if self.downsample is None:
            return x, size
        return self.downsample(x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size))


class PlainFocalNet(nn.Module):
    """The official classifier without layer scale, post-norm and overlapping convolutions; its state dict's keys."""

    def __init__(self, dim: int, depths: list[int], window: int, levels: int, patch: int = 4):
        super().__init__()
        self.patch_embed = PlainPatchEmbed(3, dim, patch)
        self.layers = nn.ModuleList(
            PlainStage(dim * 2**i, depth, window, levels, i + 1 == len(depths)) for i, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(dim * 2 ** (len(depths) - 1))
        self.head = nn.Linear(self.norm.normalized_shape[0], 1000)

    def forward(self, x: Tensor) -> Tensor:
        x, size = self.patch_embed(x)
        for layer in self.layers:
            x, size = layer(x, size)
        return self.head(torch.flatten(self.norm(x).transpose(1, 2).mean(2), 1))


@pytest.mark.speed
@pytest.mark.parametrize(("name", "levels"), [("focalnet_tiny_srf_fused", 2), ("focalnet_tiny_lrf_fused", 3)])
def test_no_slower_than_plain_modules(name, levels):
    plain = PlainFocalNet(96, [2, 2, 6, 2], 3, levels).eval()
    ours = timm.create_model(name).eval()
    ours.load_state_dict(checkpoint_filter_fn(plain.state_dict(), ours))
    assert_same_and_no_slower(ours, plain, name)
