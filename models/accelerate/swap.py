"""What a swap is: a type of timm's modules, and the subclass of it that computes the same with an operator of ours."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Swap:
    """One type of timm's modules that we serve.

    A module is swapped by setting its class, so parameters, buffers, hooks and names stay what they are. The
    replacement adds no state, and calls the original's forward wherever it cannot give the same result.

    Args:
        original: the type; a subclass of it may compute something else and is left alone.
        replacement: a subclass that overrides methods only.
        operator: what the replacement calls, for the report.
        unsupported: tells why a module of the type is left alone, or None.
        concerns: tells whether a module of the type is one of those at all; the others go unmentioned.
        if_measured: swap only in models that were measured to gain by it, because it costs about what it saves.
    """

    original: type[nn.Module]
    replacement: type[nn.Module]
    operator: str
    unsupported: Callable[[nn.Module], str | None] = lambda module: None
    concerns: Callable[[nn.Module], bool] = lambda module: True
    if_measured: bool = False


def silent(*modules: nn.Module) -> bool:
    """Return whether the forward of these modules may be left out: no hook watches them, they drop nothing."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or (isinstance(module, nn.Dropout) and module.training and module.p > 0)
        for module in modules
    )


def unknown(attn: nn.Module) -> str:
    """Return why a block is left alone whose attention is not timm's own."""
    return f"its attention is a {type(attn).__name__}"


def pointwise(convolution: nn.Module, x: Tensor, linear: Callable[..., Tensor] = F.linear) -> Tensor:
    """Apply a 1x1 convolution to a channels-last map, [B, H, W, C] -> [B, H, W, D], as the linear map that it is.

    Anything else that stands in its place, such as an adapter, or that is hooked, is called.

    Args:
        linear: what computes the linear map, called as torch's function is.
    """
    if type(convolution) is nn.Conv2d and silent(convolution):
        return linear(x, convolution.weight.flatten(1), convolution.bias)
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def readable(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a parameter, bias or mask in a dtype that operators read beside `x`; autocast may leave it in another."""
    kept = parameter is None or parameter.dtype in (x.dtype, torch.float32)
    return parameter if kept else parameter.to(x.dtype)
