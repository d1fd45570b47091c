"""Stems: from an image [B, C, H, W] to the first channels-last map [B, h, w, dim]."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import autocast
from .plain import is_plain


def convolve_image(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return a convolution of an image that is channels-last in memory, [B, C, H, W] -> [B, h, w, dim].

    cuDNN fills an image's three channels up to eight, as tensor cores take them, in passes of its own; on GPUs in half
    precision a compiler lays the image out where it casts it.
    """
    if torch.compiler.is_compiling() and x.is_cuda and _is_ordinary(conv):
        (image,) = autocast.cast(x)
        if image.dtype in (torch.bfloat16, torch.float16):
            disjoint = conv.kernel_size == conv.stride and not any(conv.padding)
            return (project_patches if disjoint else convolve_filled)(image, conv)
    # A batch norm would keep other strides, and all blocks after it.
    return conv(x).permute(0, 2, 3, 1).contiguous()


def _is_ordinary(conv: nn.Module) -> bool:
    """Return whether a convolution is no more than its weight, bias, stride and padding."""
    settings = ("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")
    plain = is_plain(conv, nn.Conv2d) and conv.bias is not None and not isinstance(conv.padding, str)
    return plain and all(getattr(conv, name) == value for name, value in settings)


def project_patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return a convolution over disjoint patches as a linear map of them, in the dtype of x."""
    height, width = conv.kernel_size
    x = x[..., : x.shape[-2] // height * height, : x.shape[-1] // width * width]
    patches = x.unflatten(-1, (-1, width)).unflatten(-3, (-1, height)).permute(0, 2, 4, 3, 5, 1).flatten(3)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1).to(x.dtype), conv.bias.to(x.dtype))


def convolve_filled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return a convolution of channels filled up with zeros to a multiple of 8, in the dtype of x."""
    lack = (0, 0, 0, 0, 0, -x.shape[1] % 8)
    weight = F.pad(conv.weight, lack).to(x.dtype)
    out = F.conv2d(F.pad(x, lack), weight, conv.bias.to(x.dtype), conv.stride, conv.padding)
    return out.permute(0, 2, 3, 1).contiguous()


class ConvTokenizer(nn.Module):
    """Two overlapping 3x3 convolutions of stride 2, then a norm: [B, C, H, W] -> [B, ceil(H/4), ceil(W/4), dim].

    Source: the tokenizer of arXiv 2204.07143.
    """

    stride = 4

    def __init__(self, in_chans: int, dim: int, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        # Three channels are cheap to reorder; from here on every map is channels-last in memory.
        x = x.contiguous(memory_format=torch.channels_last)
        x = convolve_image(x, self.conv1).permute(0, 3, 1, 2)
        return self.norm(self.conv2(x).permute(0, 2, 3, 1))


class PatchStem(nn.Module):
    """One convolution, over disjoint patches unless told, then a norm: [B, C, H, W] -> [B, h, w, dim].

    The image is zero-padded at the bottom and right: to a multiple of the patch, so that h = ceil(H / patch); without
    `ceil_mode` only to what gives the smallest map, 1, and the convolution drops what remains.

    Args:
        patch: stride of the convolution.
        kernel, padding: its kernel, the patch by default, and the zeros on every side.

    Source: arXiv 2103.14030, as used by DiNAT_s, the isotropic models of arXiv 2209.15001, and arXiv 2203.11926.
    """

    cpu_format = torch.channels_last

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch: int = 4,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        kernel: int | None = None,
        padding: int = 0,
        ceil_mode: bool = True,
    ):
        super().__init__()
        self.stride = patch
        self.ceil_mode = ceil_mode
        self.conv = nn.Conv2d(in_chans, dim, kernel or patch, stride=patch, padding=padding)
        self.smallest = max((kernel or patch) - 2 * padding, 1)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        pad_height, pad_width = self._lack(x.shape[-2]), self._lack(x.shape[-1])
        if pad_height or pad_width:
            x = F.pad(x, (0, pad_width, 0, pad_height))
        x = x.contiguous(memory_format=self.cpu_format if x.device.type == "cpu" else torch.channels_last)
        return self.norm(convolve_image(x, self.conv))

    def _lack(self, extent: int) -> int:
        return -extent % self.stride if self.ceil_mode else max(self.smallest - extent, 0)


class ConvStem(nn.Module):
    """3x3 convolutions, each with batch norm and an activation: [B, C, H, W] -> [B, h, w, dims[-1]].

    A stride of 2 rounds odd extents up.

    Args:
        dims, strides: channels and stride of each convolution.
        multiple: what the image is zero-padded to a multiple of first, at the bottom and right.
        last_act: whether the activation follows the last one too.
        act: the activation.
        norm: builder of a norm after all.

    Source: the stems of SOFT, arXiv 2110.11945, L2ViT, arXiv 2501.16182, and with GELU RAVLT, arXiv 2411.07635.
    """

    def __init__(
        self,
        in_chans: int,
        dims: Sequence[int],
        strides: Sequence[int],
        multiple: int = 1,
        last_act: bool = True,
        act: Callable[[Tensor], Tensor] = F.relu,
        norm: Callable[[int], nn.Module] = nn.Identity,
    ):
        super().__init__()
        self.stride = math.prod(strides)
        self.multiple = multiple
        widths = zip((in_chans, *dims), dims, strides, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=stride, padding=1) for a, b, stride in widths)
        self.bns = nn.ModuleList(nn.BatchNorm2d(dim) for dim in dims)
        self.last_act = last_act
        self.act = act
        self.norm = norm(dims[-1])

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % self.multiple, 0, -x.shape[-2] % self.multiple)).contiguous()
        last = len(self.convs) - 1
        for index, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            x = bn(conv(x))
            x = self.act(x) if index < last or self.last_act else x
        return self.norm(x.permute(0, 2, 3, 1).contiguous())
