"""LITv2 on a CPU against the official module graph of plain torch modules, which works on token lists [B, N, C]."""

import pytest
import timm
import torch
from torch import nn
from torchvision.ops import DeformConv2d

from saccade.models.litv2_checkpoint import checkpoint_filter_fn

from ..speed import assert_same_and_no_slower


class HiLo(nn.Module):
    def __init__(self, dim, heads, window, alpha):
        super().__init__()
        self.head_dim = dim // heads
        self.window = window
        self.low_heads = heads if window == 1 else int(heads * alpha)
        self.high_heads = heads - self.low_heads
        low, high = self.low_heads * self.head_dim, self.high_heads * self.head_dim
        if low:
            self.l_q = nn.Linear(dim, low)
            self.l_kv = nn.Linear(dim, 2 * low)
            self.l_proj = nn.Linear(low, low)
            self.pool = nn.AvgPool2d(window) if window > 1 else None
        if high:
            self.h_qkv = nn.Linear(dim, 3 * high)
            self.h_proj = nn.Linear(high, high)

    def attend(self, q, k, v):
        return ((q @ k.transpose(-2, -1)) * self.head_dim**-0.5).softmax(-1) @ v

    def high(self, x):
        batch, height, width, _ = x.shape
        s, rows, columns = self.window, height // self.window, width // self.window
        x = x.reshape(batch, rows, s, columns, s, -1).transpose(2, 3)
        qkv = self.h_qkv(x).reshape(batch, rows * columns, s * s, 3, self.high_heads, self.head_dim)
        x = self.attend(*qkv.permute(3, 0, 1, 4, 2, 5).unbind()).transpose(2, 3)
        x = x.reshape(batch, rows, columns, s, s, -1).transpose(2, 3).reshape(batch, height, width, -1)
        return self.h_proj(x)

    def low(self, x):
        batch, height, width, channels = x.shape
        q = self.l_q(x).reshape(batch, height * width, self.low_heads, self.head_dim).transpose(1, 2)
        if self.pool is not None:
            x = self.pool(x.permute(0, 3, 1, 2)).reshape(batch, channels, -1).transpose(1, 2)
        kv = self.l_kv(x).reshape(batch, -1, 2, self.low_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        x = self.attend(q, *kv.unbind()).transpose(1, 2).reshape(batch, height, width, -1)
        return self.l_proj(x)

    def forward(self, x, size):
        x = x.reshape(x.shape[0], *size, x.shape[2])
        if not self.low_heads:
            out = self.high(x)
        elif not self.high_heads:
            out = self.low(x)
        else:
            out = torch.cat((self.high(x), self.low(x)), dim=-1)
        return out.flatten(1, 2)


class DWConv(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x, size):
        x = x.transpose(1, 2).view(x.shape[0], x.shape[2], *size)
        return self.dwconv(x).flatten(2).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.dwconv = DWConv(4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x, size):
        return self.fc2(self.act(self.dwconv(self.fc1(x), size)))


class Block(nn.Module):
    def __init__(self, dim, heads, window, alpha):
        super().__init__()
        if window:
            self.norm1 = nn.LayerNorm(dim)
            self.attn = HiLo(dim, heads, window, alpha)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x, size):
        if hasattr(self, "attn"):
            x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x), size)


class DeformConvPack(DeformConv2d):
    def __init__(self, in_dim, dim):
        super().__init__(in_dim, dim, 2, stride=2)
        self.conv_offset = nn.Conv2d(in_dim, 8, 2, stride=2)

    def forward(self, x):
        return super().forward(x, self.conv_offset(x))


class Merging(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dconv = DeformConvPack(dim, 2 * dim)
        self.norm_layer = nn.BatchNorm2d(2 * dim)

    def forward(self, x, size):
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)
        return nn.functional.gelu(self.norm_layer(self.dconv(x))).flatten(2).transpose(1, 2)


class Layer(nn.Module):
    def __init__(self, dim, depth, heads, window, alpha, last):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, window, alpha) for _ in range(depth))
        if not last:
            self.downsample = Merging(dim)


class PatchEmbed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class PlainLITv2(nn.Module):
    """LITv2-S."""

    def __init__(self, alpha):
        super().__init__()
        self.patch_embed = PatchEmbed(96)
        stages = zip((2, 2, 6, 2), (3, 6, 12, 24), (0, 0, 2, 1), strict=True)
        self.layers = nn.ModuleList(
            Layer(96 * 2**i, depth, heads, window, alpha, i == 3) for i, (depth, heads, window) in enumerate(stages)
        )
        self.norm = nn.LayerNorm(768)
        self.head = nn.Linear(768, 1000)

    def forward(self, x):
        size = (x.shape[2] // 4, x.shape[3] // 4)
        x = self.patch_embed(x)
        for layer in self.layers:
            for block in layer.blocks:
                x = block(x, size)
            if hasattr(layer, "downsample"):
                x = layer.downsample(x, size)
                size = (size[0] // 2, size[1] // 2)
        return self.head(self.norm(x).transpose(1, 2).mean(2))


@pytest.mark.speed
@pytest.mark.parametrize(("name", "alpha"), [("litv2_small", 0.9), ("litv2_small_alpha00", 0.0)])
def test_no_slower_than_plain_modules(name, alpha):
    plain = PlainLITv2(alpha).eval()
    for layer in plain.layers[:3]:
        nn.init.normal_(layer.downsample.dconv.conv_offset.weight, std=0.1)
    ours = timm.create_model(name).eval()
    ours.load_state_dict(checkpoint_filter_fn(plain.state_dict(), ours))
    assert_same_and_no_slower(ours, plain, name)
