"""Detectors and segmentors of the recipes, built small, and what they learn from and predict on."""

from dataclasses import replace

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from saccade.tools.dense.config import model_config
from saccade.tools.dense.settings import Settings, read_settings

CLASSES = 5


def settings_of(recipe: str, *overrides: str, **model: object) -> Settings:
    """Return a recipe's settings with fields of its model replaced."""
    GlobalHydra.instance().clear()
    with initialize_config_module("saccade.recipes", version_base="1.3"):
        settings = read_settings(compose(recipe, overrides=["data.root=/data", *overrides]))
    return replace(settings, model=replace(settings.model, **model))


def build(settings: Settings) -> nn.Module:
    """Build what the settings describe."""
    init_default_scope(settings.architecture.base.split("::")[0])
    model = MODELS.build(model_config(settings, sync_norms=False))
    if hasattr(model, "level_embed"):
        # Until `init_weights` DINO's is what the memory held, which may be NaN.
        nn.init.normal_(model.level_embed)
    return model


def batch(model: nn.Module, height: int = 64, width: int = 96) -> dict:
    """Return two images and what is on them."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(2)]
    make = segmentation_sample if hasattr(model, "decode_head") else detection_sample
    return {"inputs": inputs, "data_samples": [make(height, width) for _ in inputs]}


def detection_sample(height: int, width: int):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    boxes = torch.tensor([[8.0, 8, 40, 40], [50, 20, 90, 60]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]), masks=BitmapMasks(masks.numpy(), height, width))
    # Numbers of classes and, on the second box, of stuff; the rest is unlabelled.
    classes = torch.full((1, height, width), 255)
    classes[:, :10] = CLASSES
    shape = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    shape |= {"pad_shape": (height, width), "batch_input_shape": (height, width)}
    return DetDataSample(metainfo=shape, gt_instances=instances, gt_sem_seg=PixelData(sem_seg=classes))


def segmentation_sample(height: int, width: int):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    classes = torch.arange(width).expand(1, height, width) * CLASSES // width
    shape = {"img_shape": (height, width), "ori_shape": (height, width), "pad_shape": (height, width)}
    return SegDataSample(metainfo=shape, gt_sem_seg=PixelData(data=classes.clone()))
