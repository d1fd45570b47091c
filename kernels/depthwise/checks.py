"""Argument checks of depthwise convolution."""

from torch import Tensor

from ..checks import check_map, check_parameter, per_axis

ACTIVATIONS = ("gelu",)


def check_kernel(name: str, weight: Tensor, bias: Tensor | None, x: Tensor) -> None:
    """Check the weight called `<name>weight` and the bias `<name>bias` of a depthwise convolution of the map x."""
    channels = x.shape[-1]
    if weight.dim() != 4 or any(size % 2 == 0 for size in weight.shape[2:]):
        raise ValueError(
            f"{name}weight has shape {list(weight.shape)}; valid: [{channels}, 1, kh, kw] with odd kh and kw"
        )
    check_parameter(f"{name}weight", weight, (channels, 1, *weight.shape[2:]), x)
    if bias is not None:
        check_parameter(f"{name}bias", bias, (channels,), x)


def check_dilation(dilation) -> tuple[int, int]:
    """Return the dilation of rows and of columns."""
    rows, columns = per_axis("dilation", dilation, 2, int)
    if min(rows, columns) < 1:
        raise ValueError(f"dilation={dilation!r}; valid: 1 or more")
    return rows, columns


def check_activation(activation: str | None) -> None:
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation={activation!r}; valid: None, {', '.join(map(repr, ACTIVATIONS))}")


def check_addend(add: Tensor, x: Tensor, residual: bool) -> None:
    if residual:
        raise ValueError("add is a map and residual=True; valid: one of the two")
    if add.dtype != x.dtype:
        raise ValueError(f"add has dtype {add.dtype}; valid: that of x, {x.dtype}")
    check_parameter("add", add, x.shape, x)


def check_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation,
    activation,
    residual: bool,
    x_bias: Tensor | None,
    add: Tensor | None,
) -> tuple[int, int]:
    """Check the arguments of a depthwise convolution and return its dilation of rows and of columns."""
    check_activation(activation)
    check_map("x", x)
    check_kernel("", weight, bias, x)
    if x_bias is not None:
        check_parameter("x_bias", x_bias, x.shape[-1:], x)
    if add is not None:
        check_addend(add, x, residual)
    return check_dilation(dilation)
