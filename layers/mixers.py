"""The token mixers by name: how they are registered, what each can be told, and how a body builds one."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

from timm.layers import register_notrace_module
from torch import nn

MIXERS: dict[str, Callable[..., nn.Module]] = {}
"""Every registered mixer; called with `dim` and what `mixer_parameters` names, it is [B, H, W, dim] -> the same."""

# What a body says of itself, and no one by hyper-parameters.
_OF_THE_BODY = ("dim", "key_grid", "num_prefix_tokens")
_NAMELESS = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def register_mixer(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Return a class decorator that registers a token mixer under `name`; README.md beside this file shows how.

    Raises:
        ValueError: another mixer has that name.
    """

    def register(mixer: type[nn.Module]) -> type[nn.Module]:
        if name in MIXERS:
            raise ValueError(f"name={name!r} is taken by the mixer {MIXERS[name]}; choose another")
        MIXERS[name] = mixer
        # What mixers do depends on sizes, so symbolic tracing (timm's feature_cls="fx") keeps them whole.
        return register_notrace_module(mixer)

    return register


def check_mixer(name: str) -> None:
    """Raise ValueError unless a mixer has that name."""
    if not isinstance(name, str) or name not in MIXERS:
        raise ValueError(f"mixer={name!r} is unknown; valid: {', '.join(sorted(MIXERS))}")


def mixer_parameters(name: str, core: str | None = None) -> set[str] | None:
    """Return the names of all that the mixer called `name` can be built with, or None where it takes any.

    Args:
        core: name of the attention core, for a mixer that can have several.
    """
    check_mixer(name)
    mixer = MIXERS[name]
    parameters = signature(mixer).parameters
    known = {key for key, parameter in parameters.items() if parameter.kind not in _NAMELESS}
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return known
    cores = list(_cores(mixer, parameters, core))
    return known.union(*(signature(kind).parameters for kind in cores)) if cores else None


def _cores(mixer: Callable, parameters: Mapping[str, Parameter], core: str | None) -> Iterator[type[nn.Module]]:
    """Yield the class of the attention core that a mixer passes further arguments on to, if it has one."""
    from .qkv import CORES  # which imports cores from files that hold mixers too

    names = [argument for argument in getattr(mixer, "args", ()) if isinstance(mixer, partial)]
    if "core" in parameters:
        names.append(core or parameters["core"].default)
    yield from (CORES[name] for name in names if name in CORES)


def build_mixer(
    name: str, dim: int, num_heads: int | None = None, offers: Mapping[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """Build the token mixer called `name`, a module [B, H, W, dim] -> [B, H, W, dim].

    Args:
        name: one of `MIXERS`.
        num_heads: for mixers that have heads; the others do without.
        offers: what a body that carries any mixer has to say, e.g. its `num_heads` and `grid`. Of this a mixer gets
            what it has parameters for, unless `kwargs` or the registration under this name say otherwise.
        kwargs: hyper-parameters of the mixer, e.g. `window` and `dilation` of neighborhood attention.

    Raises:
        ValueError: no mixer has that name, or it has no such hyper-parameter.
    """
    offers = {**(offers or {}), **({} if num_heads is None else {"num_heads": num_heads})}
    known = mixer_parameters(name, kwargs.get("core", offers.get("core")))
    mixer = MIXERS[name]
    if known is not None:
        for key, value in kwargs.items():
            if key not in known:
                valid = ", ".join(sorted(known.difference(_OF_THE_BODY))) or "none"
                raise ValueError(f"{key}={value!r} is no hyper-parameter of mixer {name!r}; valid: {valid}")
        offers = {key: value for key, value in offers.items() if key in known}
    settled = mixer.keywords if isinstance(mixer, partial) else {}
    return mixer(dim, **{**offers, **settled, **kwargs})


def takes_tokens(mixer: nn.Module) -> bool:
    """Return whether a mixer can be called with tokens [B, N, C], a class token first, and the size of their map."""
    return "grid" in signature(mixer.forward).parameters
