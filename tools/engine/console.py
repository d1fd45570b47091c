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
        self.out = sys.stdout  # also where another part of the program sends its own output elsewhere
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

            tqdm.write(line, file=self.out)
        else:
            print(line, file=self.out, flush=True)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(line + "\n")

    def bar(self, total: int, name: str, start: int = 0) -> Any:
        """A bar with `update()` and `close()`; invisible where there is no terminal."""
        from tqdm import tqdm

        return tqdm(total=total, initial=start, desc=name, leave=False, dynamic_ncols=True, disable=not self.bars)

    def progress(self, items: Iterable[Any], total: int, name: str, start: int = 0) -> Iterator[Any]:
        """Iterate, with a bar on a terminal."""
        with self.bar(total, name, start) as bar:
            for item in items:
                yield item
                bar.update()
