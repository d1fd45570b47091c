"""What a person sees of a run: plain lines, kept in the run's log as well, and a bar where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class Console:
    """Prints on the first process only."""

    def __init__(self, main: bool = True):
        self.main = main
        self.bars = main and sys.stderr.isatty()
        self.log: Path | None = None

    def keep(self, log: Path) -> None:
        """From now on append every line to this file as well."""
        self.log = log if self.main else None

    def print(self, line: str) -> None:
        if not self.main:
            return
        if self.bars:
            from tqdm import tqdm

            tqdm.write(line)
        else:
            print(line, flush=True)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(line + "\n")

    def progress(self, items: Iterable[Any], total: int, name: str, start: int = 0) -> Iterator[Any]:
        """Iterate, with a bar on a terminal."""
        if not self.bars:
            yield from items
            return
        from tqdm import tqdm

        yield from tqdm(items, total=total, initial=start, desc=name, leave=False, dynamic_ncols=True)
