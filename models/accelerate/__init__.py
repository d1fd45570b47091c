"""Timm's models, served faster: modules that an operator of ours computes are swapped in place."""

from collections.abc import Callable, Iterator
from typing import Any

from timm.models import nest, swin_transformer_v2, swin_transformer_v2_cr, vision_transformer_sam
from torch import nn

from . import davit, depthwise, focalnet, gcvit, halo, hiera, maxxvit, swin, tiny_vit, twins
from .report import Report, describe
from .swap import Swap

__all__ = ["Report", "accelerate", "restore"]

SWAPS = {
    swap.original: swap
    for swap in (
        focalnet.SWAP,
        swin.SWAP,
        davit.SWAP,
        twins.SWAP,
        tiny_vit.SWAP,
        gcvit.SWAP,
        maxxvit.SWAP,
        *hiera.SWAPS,
        halo.SWAP,
        depthwise.SWAP,
    )
}
SWAPPED = {swap.replacement: swap for swap in SWAPS.values()}

LEFT = {
    swin_transformer_v2.WindowAttention: "cosine attention",
    swin_transformer_v2_cr.WindowMultiHeadAttention: "cosine attention",
    vision_transformer_sam.Attention: "its position bias depends on the query",
    nest.Attention: "its windows are contiguous, and PyTorch's attention serves them",
}
"""Modules of the kinds that we serve, which no operator of ours gives exactly or faster, and why."""


def accelerate(model: nn.Module, report: Callable[[Report], Any] | None = print, unmeasured: bool = False) -> nn.Module:
    """Swap what our operators compute faster in a model of timm, in place, and say what was swapped.

    Served are FocalNet's modulation; the window attention of Swin, AutoFormerV2, DaViT, Twins, TinyViT, GCViT (local),
    MaxViT (and its grids of odd extent), Hiera and SAM 2's Hiera; large depthwise convolutions, for the shapes measured
    to win; and HaloNet's attention, in models measured to gain. Everything else stays. So do names, parameters,
    buffers, state dict, hooks and, up to rounding, outputs and gradients; dropout of the output draws in another order.
    A module whose inner parts are hooked, or that drops attention weights in training, runs timm's own code. Call it
    before `torch.compile`; a second call changes nothing.

    Args:
        model: any model. The gain is a GPU's, most in half precision and with `channels_last` memory; a CPU has none.
        report: what takes the `Report`, whose text says it all: `print`, or None for silence.
        unmeasured: also swap what is otherwise only swapped in models that were measured to gain.

    Returns:
        The model itself.

    Raises:
        TypeError: `model` is no module.
    """
    _check(model)
    told = describe(model)
    for name, module in _outermost(model):
        kind = type(module)
        if kind in SWAPPED:
            told.swapped[name] = (SWAPPED[kind].original.__name__, SWAPPED[kind].operator)
        elif kind in LEFT:
            told.left[name] = (kind.__name__, LEFT[kind])
        elif kind in SWAPS and SWAPS[kind].concerns(module):
            _swap(name, module, SWAPS[kind], told, unmeasured)
    if report is not None:
        report(told)
    return model


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a model's modules by name, without those inside a swapped one, whose parts it reads."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module not in inside:
            yield name, module
            # Asked after the module was dealt with, so a module swapped just now counts.
            if type(module) in SWAPPED:
                inside.update(module.modules())


def _swap(name: str, module: nn.Module, swap: Swap, told: Report, unmeasured: bool) -> None:
    reason = "its forward is overridden" if "forward" in module.__dict__ else swap.unsupported(module)
    if reason is None and swap.if_measured and not unmeasured and not told.gained:
        reason = "no gain measured for this model"
    if reason is None:
        module.__class__ = swap.replacement
        told.swapped[name] = (swap.original.__name__, swap.operator)
    else:
        told.left[name] = (swap.original.__name__, reason)


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`, in place: every swapped module runs timm's own code again. Returns the model itself."""
    _check(model)
    for module in model.modules():
        if type(module) in SWAPPED:
            module.__class__ = SWAPPED[type(module)].original
    return model


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} is a {type(model).__name__}; valid: a torch.nn.Module, such as a timm model")
