"""torch.compile for models whose maps are channels-last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PACKAGE = __package__.split(".")[0]


def compiled(model: nn.Module, mode: str = "default", dynamic: bool | None = None) -> Callable[[Tensor], Tensor]:
    """Compile a model as torch.compile does; if it has layers of ours, without Inductor's choice of layouts.

    In models of few convolutions that choice takes every tensor of four axes for [B, C, H, W] and lays a map
    [B, H, W, C] out with H innermost: what follows transposes it. Ours lie as convolutions want them anyway.

    Args:
        mode, dynamic: as for torch.compile.
    """
    if not any(type(module).__module__.split(".")[0] == PACKAGE for module in model.modules()):
        return torch.compile(model, mode=mode, dynamic=dynamic)
    # A compile takes a mode or options, not both.
    from torch._inductor import list_mode_options

    options = {**list_mode_options(mode), "layout_optimization": False}
    return torch.compile(model, options=options, dynamic=dynamic)
