"""Files and directories that are complete or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"  # prefix of what is being written; such leftovers of a killed run may be deleted


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; at the end it takes the place of `path`, whose old content stays until then."""
    partial = _partial(path)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give a directory to write files into; at the end it becomes `path`, which must not exist."""
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        os.rename(partial, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with new_file(path) as partial:
        partial.write_text(text)


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` point to `target`, its neighbour, in one step."""
    partial = _partial(link)
    os.symlink(target, partial)
    os.replace(partial, link)
    _flush(link.parent)
