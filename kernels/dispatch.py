"""Choice of backend: which implementation of an operator serves a call.

An operator lists its backends best first; each is a module that says why it cannot serve a call, or None. `auto` takes
the first that can. Nothing else in the package looks at devices.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

BACKENDS = ("reference", "blocked", "fused", "natten")
_forced: str | None = None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend for every operator called inside the block, in all threads.

    Args:
        name: "auto", "reference", "blocked", "fused" or "natten".

    Raises:
        ValueError: the name is not a backend. An operator called inside the block raises RuntimeError when that backend
            cannot serve the call, and says why.
    """
    global _forced
    _check_name(name, "backend")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def requested() -> str:
    """Return the backend that `saccade.backend(...)` forces, else the environment's SACCADE_BACKEND, else "auto"."""
    return _forced or os.environ.get("SACCADE_BACKEND") or "auto"


def _check_name(name: str, argument: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{argument}={name!r} is not a backend; valid: 'auto', {', '.join(map(repr, BACKENDS))}")


class Operator:
    """The backends of one operator.

    Args:
        package: the operator's package; backend `x` is its module `x`, imported when first asked, with a function
            `unsupported(direction, *call) -> str | None` beside its `forward` and `backward`.
        backends: their names, best first.

    The public function carries its operator as `function.operator`, and as `function.describe` a function from its own
    arguments to the `call` that `unsupported` reads.
    """

    def __init__(self, package: str, backends: tuple[str, ...]):
        self.name = package.rsplit(".", 1)[-1]
        self.package = package
        self.backends = backends
        self._loaded: dict[str, ModuleType | str] = {}

    def why_not(self, name: str, direction: str, *call: Any) -> str | None:
        """Return why backend `name` cannot serve the call, or None when it can."""
        if name not in self.backends:
            return f"the operator has no {name} backend"
        module = self._load(name)
        return module if isinstance(module, str) else module.unsupported(direction, *call)

    def choose(self, name: str, direction: str, *call: Any) -> ModuleType:
        """Return the module that serves the call: the named backend, or with "auto" the first that can."""
        _check_name(name, "SACCADE_BACKEND")
        reasons = {}
        for candidate in self.backends if name == "auto" else (name,):
            reasons[candidate] = self.why_not(candidate, direction, *call)
            if reasons[candidate] is None:
                return self._load(candidate)
        told = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
        raise RuntimeError(f"no backend can serve this {self.name} {direction} call ({told})")

    def _load(self, name: str) -> ModuleType | str:
        """Return a backend's module, or what it lacks; a failed import is not tried again at every call."""
        if name not in self._loaded:
            self._loaded[name] = self._import(name)
        return self._loaded[name]

    def _import(self, name: str) -> ModuleType | str:
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(__package__.split(".")[0]):
                raise
            return f"{error.name} is not installed"


def explain(op: Any, *args: Any, **kwargs: Any) -> str:
    """Tell which backend would run `op(*args, **kwargs)` and why the others would not.

    Args:
        op: a public operator function, such as `saccade.kernels.neighborhood.neighborhood_attention`.

    Returns:
        One line per direction and backend; the one that would run is marked with `->`.
    """
    operator: Operator | None = getattr(op, "operator", None)
    if operator is None:
        raise TypeError(f"op={op!r} is not a saccade operator; pass a public function of saccade.kernels")
    call = op.describe(*args, **kwargs)
    name = requested()
    lines = []
    for direction in ("forward", "backward"):
        chosen = False
        for candidate in operator.backends:
            reason = operator.why_not(candidate, direction, *call)
            if reason is None and name not in ("auto", candidate):
                reason = f"{name} is forced"
            runs = reason is None and not chosen
            chosen = chosen or runs
            said = "runs" if runs else reason or "could run; one listed before it is preferred"
            lines.append(f"{'->' if runs else '  '} {direction:8} {candidate:9} {said}")
    return "\n".join(lines)
