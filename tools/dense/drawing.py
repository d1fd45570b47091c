"""Predictions as pictures and as JSON."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .prediction import Found, Prediction
from .shapes_dataset import run_lengths

SHORTEST = 480  # a smaller picture is enlarged, so that the words on it can be read
OPACITY = 0.5
GOLDEN = 0.618034  # steps of the hue that keep neighbours apart however many classes there are


def colour_of(label: int) -> tuple[int, int, int]:
    """A class's colour, RGB."""
    shade = colorsys.hsv_to_rgb(0.02 + label * GOLDEN % 1, 0.85, 1.0 if label % 2 == 0 else 0.75)
    return tuple(round(255 * part) for part in shade)


def draw(picture: np.ndarray, prediction: Prediction, classes: list[str]) -> Image.Image:
    """Lay masks, boxes with names and scores, and the coloured map with its legend over a picture `[H, W, 3]`."""
    canvas = picture.astype(np.float32)
    if prediction.semantic is not None:
        palette = np.array([colour_of(label) for label in range(max(len(classes), prediction.semantic.max() + 1))])
        canvas += OPACITY * (palette[prediction.semantic] - canvas)
    for found in reversed(prediction.objects or []):  # the best on top
        if found.mask is not None:
            canvas[found.mask] += OPACITY * (np.array(colour_of(found.label)) - canvas[found.mask])
    image = Image.fromarray(canvas.round().astype(np.uint8))
    zoom = max(1, -(-SHORTEST // max(1, min(image.size))))
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(max(12, min(image.size) // 36))
    for found in reversed(prediction.objects or []):
        box = [round(side * zoom) for side in found.box]
        pen.rectangle(_ordered(box), outline=colour_of(found.label), width=max(2, min(image.size) // 240))
        _write(pen, font, box[0], box[1], f"{found.name} {found.score:.2f}", colour_of(found.label))
    if prediction.semantic is not None:
        below = 0
        for label in np.unique(prediction.semantic):
            below = _write(pen, font, 0, below, classes[label], colour_of(int(label)))
    return image


def _ordered(box: list[int]) -> list[int]:
    left, top, right, bottom = box
    return [left, top, max(left, right), max(top, bottom)]


def _write(pen: ImageDraw.ImageDraw, font: Any, x: int, y: int, text: str, colour: tuple[int, int, int]) -> int:
    """Write on a patch of colour; returns where the patch ends below."""
    left, top, right, bottom = pen.textbbox((x + 2, max(0, y) + 1), text, font=font)
    pen.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=colour)
    dark = sum(colour) > 380
    pen.text((x + 2, max(0, y) + 1), text, font=font, fill=(0, 0, 0) if dark else (255, 255, 255))
    return round(bottom) + 3


def record(prediction: Prediction, classes: list[str]) -> dict[str, Any]:
    """A prediction for JSON: boxes as COCO's [left, top, width, height], masks as its run lengths, a map as shares."""
    content: dict[str, Any] = {}
    if prediction.objects is not None:
        content["objects"] = [_object(found) for found in prediction.objects]
    if prediction.semantic is not None:
        labels, pixels = np.unique(prediction.semantic, return_counts=True)
        content["shares"] = {
            classes[label]: round(count / prediction.semantic.size, 4)
            for label, count in zip(labels, pixels.tolist(), strict=True)
        }
    return content


def _object(found: Found) -> dict[str, Any]:
    left, top, right, bottom = found.box
    content = {
        "class": found.name,
        "score": round(found.score, 4),
        "box": [round(side, 2) for side in (left, top, right - left, bottom - top)],
    }
    if found.mask is not None:
        content["mask"] = {"size": list(found.mask.shape), "counts": run_lengths(found.mask)}
    return content
