"""Random depthwise convolutions and large kernel attentions, and both by torch's own convolutions."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from saccade.kernels.depthwise import depthwise_conv2d
from saccade.kernels.large_kernel import large_kernel_attention


@dataclass
class Case:
    """A map of `shape` [B, H, W, C], an undilated kernel and a dilated one."""

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    dilated_kernel: tuple[int, int]
    dilation: tuple[int, int]
    bias: bool
    seed: int

    def tensors(self, dtype=torch.float64) -> list[Tensor]:
        """Return the map, the weights, and with `bias` the biases, in the order of `large_kernel_attention`."""
        generator = torch.Generator().manual_seed(self.seed)
        channels = self.shape[-1]
        shapes = [self.shape, (channels, 1, *self.kernel), (channels, 1, *self.dilated_kernel), (channels, channels)]
        shapes += [(channels,)] * 3 if self.bias else []
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]

    def addend(self, dtype=torch.float64) -> Tensor:
        """Return another map, for a convolution to add."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)


@st.composite
def cases(draw) -> Case:
    def pair(values):
        return draw(values), draw(values)

    return Case(
        shape=(draw(st.integers(1, 2)), *pair(st.integers(1, 12)), draw(st.integers(1, 5))),
        kernel=pair(st.sampled_from([1, 3, 5])),
        dilated_kernel=pair(st.sampled_from([1, 3, 7, 11])),
        dilation=pair(st.integers(1, 5)),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: tuple[int, int] = (1, 1)) -> Tensor:
    """Return torch's depthwise convolution of a channels-last map, padded to keep it."""
    padding = [size // 2 * step for size, step in zip(weight.shape[2:], dilation, strict=True)]
    x = x.permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1]).permute(0, 2, 3, 1)


def activate(x: Tensor, *parameters: Tensor, dilation: tuple[int, int] = (1, 1)) -> Tensor:
    """Return x plus GELU of torch's depthwise convolution."""
    return x + F.gelu(convolve(x, *parameters, dilation=dilation))


def convolve_biased(x, weight, bias=None, x_bias=None, dilation=(1, 1)) -> Tensor:
    """Return torch's depthwise convolution of a map plus a bias."""
    return convolve(x if x_bias is None else x + x_bias, weight, bias, dilation)


def ours_biased(x, weight, bias=None, x_bias=None, **options) -> Tensor:
    """Return our depthwise convolution of a map plus a bias, whose gradient comes out of the convolution's."""
    x = x if x_bias is None else (x + x_bias.detach()).to(x.dtype)
    return depthwise_conv2d(x, weight, bias, x_bias=x_bias, **options)


ours_biased.operator = depthwise_conv2d.operator
ours_biased.describe = lambda *tensors, **options: depthwise_conv2d.describe(*tensors[:3], **options)


def attend(x, local_weight, spatial_weight, point_weight, *biases, dilation):
    """Return large kernel attention by torch's convolutions."""
    local_bias, spatial_bias, point_bias = biases or (None, None, None)
    local = convolve(x, local_weight, local_bias)
    return x * F.linear(convolve(local, spatial_weight, spatial_bias, dilation), point_weight, point_bias)


def attend_active(x, *parameters, dilation):
    """Return large kernel attention of GELU of x, by torch's convolutions."""
    return attend(F.gelu(x), *parameters, dilation=dilation)


@dataclass
class Operator:
    """An operator of ours with options, torch's way to compute it, and which of a case's tensors both take."""

    name: str
    function: Callable
    truth: Callable
    takes: tuple[int, ...]
    options: dict = field(default_factory=dict)

    def ours(self, *inputs: Tensor, **options) -> Tensor:
        return self.function(*inputs, **{**self.options, **options})

    def inputs(self, case: Case, dtype=torch.float64) -> list[Tensor]:
        tensors = case.tensors(dtype)
        return [tensors[i].requires_grad_() for i in self.takes if i < len(tensors)]

    def __str__(self) -> str:
        name = f"{self.name} of biased" if self.function is ours_biased else self.name
        return " ".join((name, *(key for key, value in self.options.items() if value)))


OPERATORS = [
    Operator("depthwise_conv2d", depthwise_conv2d, convolve, (0, 2, 5), {"activation": None, "residual": False}),
    Operator("depthwise_conv2d", depthwise_conv2d, activate, (0, 2, 5), {"activation": "gelu", "residual": True}),
    Operator("depthwise_conv2d", ours_biased, convolve_biased, (0, 2, 5, 6), {"activation": None, "residual": False}),
    Operator("large_kernel_attention", large_kernel_attention, attend, tuple(range(7)), {"activation": None}),
    Operator("large_kernel_attention", large_kernel_attention, attend_active, tuple(range(7)), {"activation": "gelu"}),
]


def widest(name: str) -> Operator:
    """Return the operator of a name that takes the most tensors."""
    return max((operator for operator in OPERATORS if operator.name == name), key=lambda operator: len(operator.takes))
