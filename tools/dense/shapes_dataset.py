"""The pictures of `shapes.py` as a data set on disk, in COCO's and ADE20K's layouts at once.

train2017/, val2017/, annotations/instances_{train,val}2017.json          COCO
images/{training,validation}/, annotations/{training,validation}/         ADE20K
shapes.json                                                               how it was made; marks it as ours
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..engine.atomic import new_directory
from ..errors import UserError, check_range
from .shapes import CLASSES, SHAPES, Instance, Scene, draw_scene

RECORD = "shapes.json"
SPLITS = {"train": ("train2017", "training"), "val": ("val2017", "validation")}  # COCO's and ADE20K's names
VERSION = 1  # of the drawing: another version draws other pictures from the same settings


@dataclass(frozen=True)
class Shapes:
    """What a data set of shapes is made from: numbers of pictures, their side in pixels, the random seed."""

    train: int = 1200
    val: int = 200
    size: int = 128
    seed: int = 0

    def check(self) -> None:
        check_range("train", self.train, 1)
        check_range("val", self.val, 1)
        check_range("size", self.size, 32, 4096)
        check_range("seed", self.seed, 0)


def is_made(root: Path, shapes: Shapes) -> bool:
    """Whether this very data set lies in `root`.

    Errors:
        UserError: something else does.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        record = json.loads((root / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"root={root} holds something that saccade did not make: choose another folder") from error
    if record == _record(shapes):
        return True
    raise UserError(f"root={root} holds shapes made with other settings ({_told(record)}): choose another folder")


def make_shapes(root: Path, shapes: Shapes, progress: Callable[[Iterable, int, str], Iterator]) -> None:
    """Draw the data set into `root`, which is absent or empty; it is there complete or not at all.

    `progress` iterates with a bar: (items, how many, what).
    """
    shapes.check()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        if root.is_dir():
            root.rmdir()
        with new_directory(root) as partial:
            for number, (split, names) in enumerate(SPLITS.items()):
                count = getattr(shapes, split)
                seeds = progress(range(count), count, f"draw {split}")
                scenes = (draw_scene(np.random.default_rng([shapes.seed, number, i]), shapes.size) for i in seeds)
                _write_split(partial, scenes, *names)
            _write_class_table(partial)
            (partial / RECORD).write_text(_json(_record(shapes)))
    except OSError as error:
        if is_made(root, shapes):  # by another process meanwhile
            return
        raise UserError(f"root={root} cannot be written: {error.strerror or error}") from error


def _record(shapes: Shapes) -> dict:
    return {"made_by": "saccade data shapes", "version": VERSION, **asdict(shapes), "classes": list(CLASSES)}


def _told(record: object) -> str:
    return re.sub(r'[{}"]', "", json.dumps(record))


def _write_split(root: Path, scenes: Iterator[Scene], coco: str, ade: str) -> None:
    for folder in (coco, f"images/{ade}", f"annotations/{ade}"):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for number, scene in enumerate(scenes, start=1):
        height, width, _ = scene.image.shape
        name = f"{number:012}.jpg"
        Image.fromarray(scene.image).save(root / coco / name, quality=95)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for instance in scene.instances:
            annotations.append(coco_annotation(instance) | {"image_id": number})
            annotations[-1]["id"] = len(annotations)

        name = f"ADE_{'train' if ade == 'training' else 'val'}_{number:08}"
        (root / "images" / ade / f"{name}.jpg").write_bytes((root / coco / f"{number:012}.jpg").read_bytes())
        Image.fromarray((scene.semantic + 1).astype(np.uint8)).save(root / "annotations" / ade / f"{name}.png")
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(SHAPES, start=1)]
    licence = {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
    (root / "annotations" / f"instances_{coco}.json").write_text(
        _json(
            {
                "info": {"description": f"textured shapes, {coco}", "version": str(VERSION)},
                "licenses": [licence],
                "images": [image | {"license": 1} for image in images],
                "annotations": annotations,
                "categories": categories,
            }
        )
    )


def coco_annotation(instance: Instance) -> dict:
    """COCO's record of one instance without its ids; one that is not clear is a crowd: neither learnt nor missed."""
    mask = instance.mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": instance.label + 1,
        "iscrowd": int(not instance.clear),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
    }


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a mask `[H, W]`, column by column, beginning with zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate([[0] if flat[0] else [], [0], changes, [flat.size]]).astype(int)
    return np.diff(ends).tolist()


def _write_class_table(root: Path) -> None:
    """ADE20K's table of names, `objectInfo150.txt`: the labels in the maps are its first column, 0 is other."""
    lines = ["Idx\tName", *(f"{index}\t{name}" for index, name in enumerate(CLASSES, start=1))]
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")


def _json(content: dict) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"
