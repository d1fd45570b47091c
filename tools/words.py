"""The words of a command line as settings with defaults."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .errors import UserError, check_choice


def read_words(words: Iterable[str], settings: dict[str, str], command: str) -> dict[str, str]:
    """Return the settings with what the words KEY=VALUE say.

    Errors:
        UserError: a word is not one of the settings.
    """
    settings = dict(settings)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in settings:
            raise UserError(f"unexpected {word!r}: {command} takes {', '.join(f'{k}=...' for k in settings)}")
        settings[key] = value
    return settings


def read_list(name: str, value: str, choices: Iterable[str]) -> list[str]:
    """Return the words between the commas of a setting, each one of the choices; nothing is an empty list."""
    choices = list(choices)
    return [check_choice(name, word, choices) for word in value.split(",") if word]


def read_number(name: str, value: str, least: int) -> int:
    """Return a setting that is a whole number.

    Errors:
        UserError: it is none, or less than `least`.
    """
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{name}={value} is not valid: give a whole number of at least {least}")
    return int(value)


def read_device(value: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" means here.

    Errors:
        UserError: it is something else, or there is no GPU.
    """
    check_choice("device", value, ("auto", "cpu", "cuda"))
    available = torch.cuda.is_available()
    if value == "cuda" and not available:
        raise UserError("device=cuda is not valid: torch sees no GPU here; choose cpu or auto")
    return torch.device("cuda" if available and value != "cpu" else "cpu")
