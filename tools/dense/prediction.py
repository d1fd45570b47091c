"""What a detector or segmentor sees in a picture, in plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DATASETS

from .runner import Runner

PANOPTIC_OFFSET = 1000  # mmdet's panoptic maps hold class + 1000 x number of the instance


@dataclass(frozen=True)
class Found:
    """An object: its class, score (0 to 1), box (left, top, right, bottom) in pixels, mask, bool `[H, W]`, if any."""

    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None


@dataclass(frozen=True)
class Prediction:
    """The objects found in a picture, best first, and each pixel's class, `[H, W]`; None for what the model lacks."""

    objects: list[Found] | None
    semantic: np.ndarray | None


class Predictor:
    """A runner's model behind its evaluation pipeline, without what that pipeline does to annotations."""

    def __init__(self, runner: Runner):
        self.model = runner.plain_model.eval()
        dataset = runner.cfg.test_dataloader.dataset
        while "dataset" in dataset:
            dataset = dataset.dataset
        self.classes = class_names(dataset)
        steps = [step for step in dataset.pipeline if not step.type.endswith("Annotations")]
        self.pipeline = Compose([{"type": "LoadImageFromNDArray"}, *steps[1:]])

    @torch.inference_mode()
    def __call__(self, picture: np.ndarray) -> Prediction:
        """Predict on an RGB picture, uint8 `[H, W, 3]`."""
        data = self.pipeline({"img": np.ascontiguousarray(picture[..., ::-1]), "img_id": 0})
        (sample,) = self.model.test_step({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]})
        objects = self._objects(sample.pred_instances.cpu()) if "pred_instances" in sample else None
        semantic = None
        if "pred_sem_seg" in sample:
            semantic = sample.pred_sem_seg.data.cpu().numpy()[0]
        elif "pred_panoptic_seg" in sample:
            semantic = sample.pred_panoptic_seg.sem_seg.cpu().numpy()[0] % PANOPTIC_OFFSET
        return Prediction(objects, semantic)

    def _objects(self, instances: Any) -> list[Found]:
        masks = instances.masks.numpy() if "masks" in instances else [None] * len(instances)
        rows = zip(instances.labels.tolist(), instances.scores.tolist(), instances.bboxes.tolist(), masks, strict=True)
        found = [Found(self.classes[label], label, score, tuple(box), mask) for label, score, box, mask in rows]
        return sorted(found, key=lambda one: -one.score)


def class_names(dataset: Config) -> list[str]:
    """The names of a data set's classes, by its config."""
    own = (dataset.get("metainfo") or {}).get("classes")
    return list(own or DATASETS.get(dataset.type).METAINFO["classes"])


def read_picture(path: Path) -> np.ndarray:
    """Read a picture of any format Pillow knows, the right way up, as RGB, uint8 `[H, W, 3]`.

    Errors:
        OSError, ValueError: it is no such picture.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scale
            image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
