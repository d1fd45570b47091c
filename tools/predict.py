"""`saccade predict`: boxes, masks and maps drawn onto a person's own pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from .dense.settings import Settings
from .dense.toolboxes import check_toolboxes
from .engine.console import Console
from .engine.distributed import Processes, connect
from .engine.run_directory import locate
from .errors import UserError, check_range
from .evaluate import choose
from .launch import Request, launch
from .recipe import is_recipe
from .saved_settings import settings_of

PREDICTED, MAP = "_predicted", "_map"  # what is added to a picture's name


def main(words: list[str]) -> None:
    pictures, rest, options = [], [], {"out": "predictions", "score": "0.3"}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in options:
            options[key] = value
        elif equals or word.startswith(("-", "~")) or is_recipe(word):
            rest.append(word)
        elif locate(Path(word))[0] is not None:
            rest.append(f"checkpoint={word}")
        else:
            pictures.append(Path(word))
    try:
        score = float(options["score"])
    except ValueError as error:
        raise UserError(f"score={options['score']} is not valid: it must be a number between 0 and 1") from error
    check_range("score", score, 0, 1)
    found = list(find_pictures(pictures))
    if not found:
        raise UserError("saccade predict needs pictures: files or folders, after the recipe or the run")
    launch("predict", rest, lambda request: predict(request, found, Path(options["out"]), score))


def find_pictures(paths: list[Path]) -> Iterator[Path]:
    """The pictures that files and folders mean; a folder's own predictions are none.

    Errors:
        UserError: there is no such file or folder.
    """
    endings = Image.registered_extensions().keys()
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in endings)
            yield from (file for file in inside if not file.stem.endswith((PREDICTED, MAP)))
        elif path.is_file():
            yield path
        else:
            raise UserError(f"no such picture, folder, recipe or run: {path}")


def predict(request: Request, pictures: list[Path], out: Path, score: float) -> None:
    """Predict on every picture; drawing, JSON and, for segmentors, the map of class numbers go to `out`."""
    settings, weights, _ = choose(settings_of(request.config)[0], request)
    if not isinstance(settings, Settings):
        raise UserError(
            f"predict draws what detectors and segmentors find, and {settings.model.name} here is a classifier: "
            "name a detection or segmentation recipe, or a run of one"
        )
    check_toolboxes()
    with connect(settings.runtime.device) as processes:
        if settings.runtime.threads is not None:
            torch.set_num_threads(settings.runtime.threads)
        draw_all(settings, weights, pictures, out, score, processes, Console())


def draw_all(
    settings: Settings,
    weights: Path,
    pictures: list[Path],
    out: Path,
    score: float,
    processes: Processes,
    console: Console,
) -> None:
    from .dense.drawing import draw, record
    from .dense.prediction import Predictor, read_picture
    from .dense.run import measuring_runner

    names = output_names(pictures)
    unread = []
    out.mkdir(parents=True, exist_ok=True)
    with measuring_runner(settings, weights, processes) as runner:
        predictor = Predictor(runner)
        for path in console.progress(pictures, len(pictures), "predict"):
            try:
                picture = read_picture(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                unread.append(str(path))
                continue
            prediction = predictor(picture)
            if prediction.objects is not None:
                likely = [found for found in prediction.objects if found.score >= score]
                prediction = replace(prediction, objects=likely)
            name, (height, width) = names[path], picture.shape[:2]
            draw(picture, prediction, predictor.classes).save(out / f"{name}{PREDICTED}.png")
            content = {"picture": str(path), "width": width, "height": height, "weights": str(weights)}
            if prediction.semantic is not None:
                content |= {"map": f"{name}{MAP}.png", "classes": predictor.classes}
                few = len(predictor.classes) <= 256
                Image.fromarray(prediction.semantic.astype("uint8" if few else "uint16")).save(out / f"{name}{MAP}.png")
            content |= record(prediction, predictor.classes)
            (out / f"{name}{PREDICTED}.json").write_text(json.dumps(content) + "\n")
            console.print(f"{path}: {summary(content)}")
    done = len(pictures) - len(unread)
    console.print(f"weights: {weights}")
    console.print(f"{done} pictures: {out}/*{PREDICTED}.png, and .json beside each")
    if unread:
        raise UserError(f"{len(unread)} of {len(pictures)} pictures could not be read: {', '.join(unread)}")


def output_names(pictures: list[Path]) -> dict[Path, str]:
    """A name for each picture's files: its own, with a number where another one has the same."""
    names: dict[Path, str] = {}
    for path in pictures:
        name, number = path.stem, 1
        while name in names.values():
            number += 1
            name = f"{path.stem}_{number}"
        names[path] = name
    return names


def summary(content: dict) -> str:
    """What was found, on one line."""
    if "objects" in content:
        return ", ".join(f"{one['class']} {one['score']:.2f}" for one in content["objects"]) or "nothing"
    largest = sorted(content["shares"].items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in largest)
