"""torch.compile for models whose maps are channels-last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PACKAGE = __package__.split(".")[0]
OPTIONS = {"layout_optimization": False, "combo_kernels": True, "combo_kernels_pointwise_only": True}
"""Of Inductor, for models with layers of ours."""


def compiled(model: nn.Module, mode: str = "default", dynamic: bool | None = None) -> Callable[[Tensor], Tensor]:
    """Compile a model as torch.compile does; if it has layers of ours, with other options of Inductor.

    Without its choice of layouts: in models of few convolutions that takes every tensor of four axes for [B, C, H, W]
    and lays a map [B, H, W, C] out with H innermost, so that what follows transposes it. Ours lie as convolutions want
    them anyway. And with what does not depend on each other in one launch, such as the casts of weights, of which a
    training step has hundreds.

    Args:
        mode, dynamic: as for torch.compile.
    """
    if not any(type(module).__module__.split(".")[0] == PACKAGE for module in model.modules()):
        return torch.compile(model, mode=mode, dynamic=dynamic)
    # A compile takes a mode or options, not both.
    from torch._inductor import list_mode_options

    return torch.compile(model, options={**list_mode_options(mode), **OPTIONS}, dynamic=dynamic)
