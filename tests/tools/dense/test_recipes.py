"""Every recipe of detection and segmentation composes and says what was published; the toolboxes need not be there."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from timm.models import get_pretrained_cfg

from saccade.tools.dense.backbone import Backbone
from saccade.tools.dense.settings import Settings, read_settings
from saccade.tools.errors import UserError
from saccade.tools.recipe import header, recipe_names

from .published import PUBLISHED

RECIPES = [name for name in recipe_names(["detection", "segmentation"]) if not name.endswith("quickstart")]
GOLDENS = Path(__file__).parents[2] / "goldens"


@cache
def settings_of(name: str, *overrides: str) -> Settings:
    GlobalHydra.instance().clear()
    with initialize_config_module("saccade.recipes", version_base="1.3"):
        return read_settings(compose(name, overrides=["data.root=/data", *overrides]))


def test_every_published_result_has_a_recipe():
    assert sorted(PUBLISHED) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_what_was_published(name):
    settings, published = settings_of(name), PUBLISHED[name]
    model, optimizer, schedule = settings.model, settings.optimizer, settings.schedule
    assert (model.name, model.drop_path_rate) == (published.model, published.drop_path)
    assert (model.weights, model.pretrained) == (published.weights, published.weights is None)
    assert (tuple(model.out_norms) if isinstance(model.out_norms, list) else model.out_norms) == published.norms
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("AdamW", published.lr, published.weight_decay)
    assert (tuple(optimizer.no_decay), settings.batch_size) == (published.no_decay, published.batch)
    assert (schedule.epochs or schedule.iterations) == published.length
    assert settings.runtime.precision == published.precision
    text = "\n".join(header(name))
    expected = re.search(r"Expected: (.*?),? the published", text, re.S)[1]
    assert tuple(float(figure) for figure in re.findall(r"\d+\.\d", expected)) == published.figures
    assert f"-m saccade.tools train {name} data.root=" in text and "Source: " in text
    source = get_pretrained_cfg(model.weights or model.name)
    assert source.url or source.hf_hub_id or source.notes
    assert model.kwargs.get("norm_eps") == (1e-5 if "_van_" in name else None)
    assert model.sync_norms == ("_van_" in name)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("detection/")])
def test_published_detection(name):
    """Schedules, images and clipping, which follow from the detector and the family."""
    settings = settings_of(name)
    schedule, data = settings.schedule, settings.data
    focal, mask2former = "focalnet" in name, "mask2former" in name
    assert settings.detector and settings.segmentor is None
    if mask2former:
        assert (settings.optimizer.clip, settings.optimizer.norm_decay) == (0.01, False)
        assert settings.optimizer.lr_scale == {"backbone": 0.1}
        if "coco" in name:
            drops = {737_500: [655_556, 710_184], 368_750: [327_778, 355_092]}
            assert (schedule.name, schedule.milestones) == ("step", drops[schedule.iterations])
        else:
            assert (schedule.name, schedule.power, schedule.warmup_iterations) == ("poly", 0.9, 0)
        assert data.size == [1024, 1024] if "coco" in name else [512, 1024] if "cityscapes" in name else [640, 640]
        queries = settings.detector.changes.get("panoptic_head", {}).get("num_queries", 100)
        assert queries == (100 if "van_b2" in name else 200)
        return
    if "/dino_" in name:
        assert (settings.optimizer.clip, settings.optimizer.lr_scale) == (0.1, {"backbone": 0.1})
        assert (schedule.milestones, schedule.warmup_iterations, data.metrics) == ([11], 0, ["bbox"])
        assert settings.model.grad_checkpointing
        return
    drops = {12: [9, 11] if focal else [8, 11], 36: [27, 33]}
    assert (schedule.name, schedule.milestones, schedule.gamma) == ("step", drops[schedule.epochs], 0.1)
    assert (schedule.warmup_iterations, schedule.warmup_factor) == (500, 0.001)
    assert settings.optimizer.clip == (1.0 if "sparse" in name else None)
    multiscale = focal or schedule.epochs == 36
    assert (data.train_transforms is not None) == multiscale
    if multiscale:
        flip, choice = data.train_transforms
        assert flip == {"type": "RandomFlip", "prob": 0.5}
        (plain,), (smaller, crop, again) = choice["transforms"]
        assert plain["scales"] == again["scales"] == [[side, 1333] for side in range(480, 801, 32)]
        assert smaller["scales"] == [[side, 1333] for side in (400, 500, 600)]
        assert crop["crop_size"] == [384, 600]
    masks = any(head in name for head in ("mask_rcnn", "mask2former"))
    assert data.metrics == (["bbox", "segm"] if masks else ["bbox"])


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("segmentation/")])
def test_published_segmentation(name):
    settings = settings_of(name)
    schedule, data = settings.schedule, settings.data
    assert settings.segmentor and settings.detector is None
    assert (schedule.name, settings.data.num_classes) == ("poly", 19 if "cityscapes" in name else 150)
    if "upernet" in name:
        assert (schedule.power, schedule.min_lr) == (1.0, 0.0)
        assert (schedule.warmup_iterations, schedule.warmup_factor) == (1500, 1e-6)
    else:
        assert (schedule.power, schedule.warmup_iterations) == (0.9, 0)
        assert schedule.min_lr == (1e-6 if "litv2" in name else 0.0)
    assert data.size == [512, 1024] if "cityscapes" in name else [640, 640] if "mask2former" in name else [512, 512]
    assert settings.optimizer.clip == (0.01 if "mask2former" in name else None)
    aligned = any(step["type"] == "ResizeToMultiple" for step in data.eval_pipeline or [])
    assert aligned == ("_van_" in name)


def dilations_of(name: str) -> list[list[int]]:
    return settings_of(name).model.kwargs["dilations"]


def test_dilations():
    """Those that the official backbones of the goldens have, and those of the largest ones."""
    golden = json.loads((GOLDENS / "nat" / "downstream_dinat_mini_upernet.json").read_text())
    assert dilations_of("segmentation/upernet_dinat_mini_160k") == golden["dilations"]
    golden = json.loads((GOLDENS / "nat" / "downstream_dinat_s_tiny_maskrcnn.json").read_text())
    assert dilations_of("detection/mask_rcnn_dinat_s_tiny_3x") == golden["dilations"]
    stages = dilations_of("segmentation/upernet_dinat_large_160k")
    assert stages[:2] == [[1, 20, 1], [1, 5, 1, 10]] and max(stages[2]) == 5 and stages[3] == [1, 2, 1, 2, 1]
    settings = settings_of("detection/mask2former_dinat_large_coco_panoptic")
    assert settings.model.kwargs["window"] == 11
    assert [max(stage) for stage in settings.model.kwargs["dilations"]] == [14, 7, 3, 1]


def test_focal_windows_and_litv2_windows():
    kwargs = settings_of("detection/mask_rcnn_focalnet_small_lrf_fused_3x").model.kwargs
    assert kwargs == {"focal_windows": 9}
    assert settings_of("detection/atss_focalnet_tiny_lrf_fused_3x").model.kwargs == {"focal_windows": [11, 9, 9, 7]}
    assert settings_of("detection/mask_rcnn_litv2_base_ws4_1x").model.kwargs == {"windows": [0, 0, 4, 1]}
    assert settings_of("detection/mask_rcnn_litv2_base_ws4_1x").model.grad_checkpointing


@cache
def built(name: str, out_indices: tuple[int, ...] | None, out_norms: str, kwargs: str) -> tuple[list[int], int]:
    """Strides of a backbone, and how many of its norms are not the model's own."""
    with torch.device("meta"):
        backbone = Backbone(
            name, out_indices=out_indices, out_norms=json.loads(out_norms), frozen_stages=0, **json.loads(kwargs)
        )
    return backbone.strides, sum(not isinstance(norm, torch.nn.Identity) for norm in backbone.norms)


@pytest.mark.parametrize("name", RECIPES)
def test_backbone_can_be_built(name):
    model = settings_of(name).model
    out_indices = None if model.out_indices is None else tuple(model.out_indices)
    strides, added = built(model.name, out_indices, json.dumps(model.out_norms), json.dumps(model.kwargs))
    assert strides == ([8, 16, 32] if "atss_focalnet" in name else [4, 8, 16, 32])
    assert added == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.name=cosine", "schedule.name=cosine is not valid: choose from poly, step"),
        ("schedule.iterations=5", "schedule.epochs=36 and schedule.iterations=5: give one, null the other"),
        ("model.out_norms=all", "model.out_norms=all is not valid: write true, false or a list of indices"),
        ("model.weights=x.pth", "model.pretrained=true and model.weights=x.pth exclude each other"),
        ("data.base=coco", "data.base=coco is not valid: write mmdet::PATH or mmseg::PATH, a config in the toolbox"),
        ("data.size=[512]", r"data.size=[512] is not valid: write [height, width]"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 is not valid: it must be at least 0"),
        ("batch_size=many", "batch_size: Value 'many'"),
        ("runtime.precision=half", "runtime.precision=half is not valid"),
        ("~detector", "a recipe for dense prediction has either a detector or a segmentor"),
    ],
)
def test_bad_values(override, message):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        settings_of("detection/mask_rcnn_nat_tiny_3x", override)
