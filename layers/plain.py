"""Modules of torch whose parameters can be used without calling them."""

from torch import nn


def is_plain(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Return whether a module is of that kind, not of a subclass, and nothing watches it: a call does no more."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)
