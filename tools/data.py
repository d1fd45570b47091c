"""`saccade data`: data sets that need no download."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from .dense.shapes_dataset import Shapes, is_made, make_shapes
from .engine.console import Console
from .errors import UserError, check_choice, unknown


def main(words: list[str]) -> None:
    if not words or "=" in words[0]:
        raise UserError("saccade data needs the name of a data set: saccade data shapes root=FOLDER")
    check_choice("data set", words[0], ("shapes",))
    root, numbers = None, {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"unexpected {word!r}: write key=value")
        if key == "root":
            root = Path(value)
        elif key in (names := [field.name for field in fields(Shapes)]):
            if not value.isdecimal():
                raise UserError(f"{key}={value} is not valid: it must be a whole number")
            numbers[key] = int(value)
        else:
            raise unknown("key", key, ["root", *names])
    if root is None:
        raise UserError("saccade data shapes needs a folder to make: root=FOLDER")
    shapes, console = Shapes(**numbers), Console()
    shapes.check()
    if is_made(root, shapes):
        console.print(f"{root} holds these shapes already")
        return
    make_shapes(root, shapes, console.progress)
    console.print(
        f"{shapes.train} training and {shapes.val} held-out pictures of {shapes.size}x{shapes.size} in {root}\n"
        f"COCO:   annotations/instances_train2017.json, train2017, and the same for val2017\n"
        f"ADE20K: images/training, annotations/training, and the same for validation"
    )
