"""The one exception a person should ever see: what is wrong, with which value, and what would be valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input, told in one line.

    `local` marks an error that only the process that met it knows of (a corrupt image in its share of the data):
    every process prints those, while an error all processes meet is printed by the first one only.
    """

    def __init__(self, message: str, local: bool = False):
        super().__init__(message)
        self.local = local


def closest(value: str, choices: Iterable[str], most: int = 5) -> list[str]:
    """The choices that look like `value`, best first: by spelling, then those that contain it."""
    choices = list(choices)
    spelled = difflib.get_close_matches(value, choices, n=most, cutoff=0.6)
    contains = [choice for choice in choices if value and value in choice and choice not in spelled]
    return (spelled + contains)[:most]


def unknown(kind: str, value: str, choices: Iterable[str]) -> UserError:
    """The error for a `value` that is none of the `choices`; names the close ones, or all when they are few."""
    choices = sorted(choices)
    near = closest(str(value), choices)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif len(choices) <= 12:
        hint = f"choose from {', '.join(choices)}"
    else:
        hint = f"there are {len(choices)} to choose from, such as {', '.join(choices[:5])}"
    return UserError(f"unknown {kind} {value!r}: {hint}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise the error that names setting, value and choices."""
    choices = sorted(choices)
    if value not in choices:
        if len(choices) > 12:
            raise unknown(name, value, choices)
        raise UserError(f"{name}={value} is not valid: choose from {', '.join(choices)}")
    return value


def check_range(name: str, value: float, low: float = float("-inf"), high: float = float("inf")) -> None:
    """Raise unless `low <= value <= high`."""
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise UserError(f"{name}={value} is not valid: it must be {limits}")
