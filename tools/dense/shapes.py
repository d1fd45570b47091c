"""Pictures of textured shapes on textured grounds, with the masks of all that is seen: data for a CPU to learn from.

A shape hides those drawn before it, and what is left of one that is nearly hidden belongs to no class. Shapes and
grounds carry the same kinds of texture. A shape's hue hints at its class, so that minutes of training suffice: each
class has a sixth of the colour circle, give or take.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
GROUNDS = ("sand", "stripes", "checks")
CLASSES = SHAPES + GROUNDS
OTHER = -1  # the class of what nobody should have to name

MOST_SHAPES = 6
RADII = 0.09, 0.22  # of the picture's side
SEEN_SHARE, SEEN_PIXELS = 0.4, 40  # a shape of which less is seen is not clear
HUE_SPREAD = 0.6  # of a class's share of the colour circle, to either side: neighbours overlap
SAMPLING = 4  # per pixel and axis, for smooth edges

Loop = list[tuple[float, float]]  # the corners (x, y) of a closed line


@dataclass(frozen=True)
class Instance:
    """What is seen of one shape: its class, an index into SHAPES, its mask, bool `[H, W]`, and whether that is enough
    to name it."""

    label: int
    mask: np.ndarray
    clear: bool


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 `[H, W, 3]`, its shapes, and each pixel's class, `[H, W]`: an index into CLASSES or OTHER."""

    image: np.ndarray
    instances: list[Instance]
    semantic: np.ndarray


def draw_scene(random: np.random.Generator, size: int) -> Scene:
    """Draw a square picture of `size` pixels a side: one or two grounds, one to six shapes."""
    image, semantic = _draw_grounds(random, size)
    labels, masks, wholes = [], [], []
    for _ in range(random.integers(1, MOST_SHAPES + 1)):
        label = int(random.integers(len(SHAPES)))
        radius = size * random.uniform(*RADII)
        center = random.uniform(0.7 * radius, size - 0.7 * radius, 2)
        cover = _cover(outline(SHAPES[label]), center, radius, random.uniform(0, 2 * math.pi), size)
        fill = _draw_texture(random, random.choice(GROUNDS), _shape_colour(random, label), size)
        image += cover[..., None] * (fill - image)
        mask = cover >= 0.5
        masks = [other & ~mask for other in masks] + [mask]
        labels.append(label)
        wholes.append(mask.sum())

    instances = []
    for label, mask, whole in zip(labels, masks, wholes, strict=True):
        seen = mask.sum()
        if seen:
            clear = bool(seen >= max(SEEN_PIXELS, SEEN_SHARE * whole))
            instances.append(Instance(label, mask, clear))
            semantic[mask] = label if clear else OTHER
    return Scene((image.clip(0, 1) * 255).round().astype(np.uint8), instances, semantic)


def outline(shape: str) -> list[Loop]:
    """The closed lines of a shape of radius 1 around the origin; the second one bounds a hole."""
    if shape == "circle":
        return [_corners(48)]
    if shape == "ring":
        return [_corners(48), [(0.55 * x, 0.55 * y) for x, y in _corners(48)]]
    if shape == "square":
        return [_corners(4)]
    if shape == "triangle":
        return [_corners(3)]
    if shape == "star":
        return [[(r * x, r * y) for (x, y), r in zip(_corners(10), [1.0, 0.42] * 5, strict=True)]]
    arm, wide = 0.95, 0.32
    quarter = [(wide, arm), (wide, wide), (arm, wide)]
    return [[(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, -1), (-1, 0), (0, 1)) for x, y in quarter]]


def _corners(count: int) -> Loop:
    return [(math.cos(angle), math.sin(angle)) for angle in np.arange(count) * (2 * math.pi / count)]


def _cover(loops: list[Loop], center: np.ndarray, radius: float, turn: float, size: int) -> np.ndarray:
    """How much of each pixel a shape covers, 0 to 1, `[size, size]`."""
    canvas = Image.new("L", (size * SAMPLING, size * SAMPLING))
    draw = ImageDraw.Draw(canvas)
    c, s = radius * math.cos(turn), radius * math.sin(turn)
    for value, loop in zip((255, 0), loops, strict=False):
        corners = [(center[0] + x * c - y * s, center[1] + x * s + y * c) for x, y in loop]
        draw.polygon([(x * SAMPLING, y * SAMPLING) for x, y in corners], fill=value)
    return np.asarray(canvas.reduce(SAMPLING), dtype=np.float32) / 255


def _draw_grounds(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of grounds only, float `[H, W, 3]`, and the class of each pixel."""
    angle, offset = random.uniform(0, 2 * math.pi), random.uniform(-0.25, 0.25) * size
    y, x = np.mgrid[:size, :size] - size / 2
    beyond = (x * math.cos(angle) + y * math.sin(angle) > offset) & bool(random.random() < 0.5)
    grey = random.uniform(0.3, 0.7)
    image, semantic = np.empty((size, size, 3), np.float32), np.empty((size, size), np.int64)
    for part, kind in zip((~beyond, beyond), random.permutation(len(GROUNDS))[:2], strict=True):
        image[part] = _draw_texture(random, GROUNDS[kind], grey + random.uniform(-0.1, 0.1, 3), size)[part]
        semantic[part] = len(SHAPES) + kind
    return image, semantic


def _draw_texture(random: np.random.Generator, kind: str, colour: np.ndarray, size: int) -> np.ndarray:
    """A full picture of one texture, float `[H, W, 3]`, whose mean is `colour`."""
    angle, period = random.uniform(0, math.pi), random.uniform(5, 10)
    y, x = np.mgrid[:size, :size] * (2 * math.pi / period)
    along = np.sin(x * math.cos(angle) + y * math.sin(angle))
    across = np.sin(y * math.cos(angle) - x * math.sin(angle))
    pattern = {"sand": random.standard_normal((size, size)), "stripes": along, "checks": np.sign(along * across)}[kind]
    grain = 0.02 * random.standard_normal((size, size, 3))
    return (colour + 0.1 * pattern[..., None] + grain).astype(np.float32)


def _shape_colour(random: np.random.Generator, label: int) -> np.ndarray:
    hue = (label + random.uniform(-HUE_SPREAD, HUE_SPREAD)) / len(SHAPES)
    return np.array(colorsys.hsv_to_rgb(hue % 1, random.uniform(0.6, 1), random.uniform(0.5, 1)))
