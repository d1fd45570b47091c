"""The image collections a recipe can name: pictures, labels and class names, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import UserError
from .settings import Data

SPLIT_SEED = 0  # of the digits: the held-out images never change
ENLARGED = (32, 32)  # the digits' 8 x 8, bicubic, so that random crops can move by less than one of their pixels


class Images(Protocol):
    """What the loader asks of a collection."""

    classes: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The picture in RGB and its class."""
        ...


class Digits:
    """scikit-learn's 1,797 real handwritten digits, 8 x 8 grey, enlarged.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    def __init__(self, training: bool, holdout: float):
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise UserError("data.kind=digits needs scikit-learn: pip install 'saccade[train]'") from error
        pixels, labels = load_digits(return_X_y=True)
        parts = train_test_split(pixels, labels, test_size=holdout, stratify=labels, random_state=SPLIT_SEED)
        pixels, labels = (parts[0], parts[2]) if training else (parts[1], parts[3])
        grey = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.pictures = [Image.fromarray(picture).resize(ENLARGED).convert("RGB") for picture in grey]
        self.labels = labels.tolist()
        self.classes = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return self.pictures[index], self.labels[index]


class Folder:
    """A directory with one sub-directory of image files per class, as ImageNet is usually unpacked.

    Errors:
        UserError: the directory is missing, holds no classes, or a class holds no images.
    """

    def __init__(self, directory: Path):
        if not directory.is_dir():
            raise UserError(
                f"no such directory: {directory} (data.root holds the splits, each with a folder per class)"
            )
        folders = sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise UserError(f"{directory} has no class folders: expected {directory}/<class>/<image>")
        self.directory, self.classes = directory, [folder.name for folder in folders]
        found = [sorted(_image_files(folder)) for folder in folders]
        empty = [folder.name for folder, files in zip(folders, found, strict=True) if not files]
        if empty:
            raise UserError(
                f"{directory}: no images in class {', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}; "
                f"remove the folder or put files ending in {', '.join(IMG_EXTENSIONS)} there"
            )
        # arrays rather than lists: reading a list's items would make every forked worker copy all of it
        self.files = np.array([os.fsencode(os.path.relpath(file, directory)) for files in found for file in files])
        self.labels = np.repeat(np.arange(len(folders)), [len(files) for files in found])

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.directory / os.fsdecode(self.files[index]), int(self.labels[index])
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB"), label
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            reason = str(error).replace(f" {str(path)!r}", "")
            raise UserError(f"cannot read the image {path}: {reason}; replace or remove it", local=True) from error


def _image_files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder, followlinks=True):
        yield from (os.path.join(place, name) for name in names if name.lower().endswith(IMG_EXTENSIONS))


def open_images(data: Data, training: bool) -> Images:
    """The training or the evaluation images of a recipe's `data`."""
    if data.kind == "digits":
        return Digits(training, data.holdout)
    if data.root is None:
        raise UserError("data.root is not set: pass data.root=<directory that holds the splits>")
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={data.root}: no such directory")
    return Folder(root / (data.train_split if training else data.eval_split))


def check_same_classes(training: Images, evaluation: Images) -> None:
    """Raise unless both splits have the same classes, which the labels of one would otherwise not mean in the other."""
    missing = sorted(set(training.classes) - set(evaluation.classes))
    extra = sorted(set(evaluation.classes) - set(training.classes))
    if missing or extra:
        sides = [f"without {', '.join(missing[:5])}"] * bool(missing) + [f"with also {', '.join(extra[:5])}"] * bool(
            extra
        )
        raise UserError(
            f"the evaluation split has other classes than the training split ({len(evaluation.classes)}, "
            f"{' and '.join(sides)}, against {len(training.classes)}): both need the same class folders"
        )
