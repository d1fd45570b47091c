"""The `saccade` command: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from .. import __version__
from .engine.distributed import in_first_process
from .errors import UserError, unknown
from .help import VERBS, overview, verb_help
from .launch import check_packages

COMPOSED = ("train", "evaluate", "predict")  # verbs that compose a recipe


def main(words: list[str] | None = None) -> int:
    """Run a command line (without the program's name); returns the exit code."""
    words = sys.argv[1:] if words is None else words
    try:
        return _dispatch(words)
    except UserError as error:
        if os.environ.get("SACCADE_DEBUG") == "1":
            raise
        if error.local or in_first_process():
            print(f"saccade: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("saccade: interrupted; resume=auto goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `saccade list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    verb, rest = words[0], words[1:]
    if verb == "--version":
        print(__version__)
        return 0
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    if "-h" in rest or "--help" in rest:
        print(verb_help(verb))
        return 0
    if verb in COMPOSED:
        check_packages()
    return import_module(f".{verb}", __package__).main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
