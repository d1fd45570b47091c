"""Recipes as the toolboxes run them: every detector and segmentor trains and predicts; rates, decay, data and sizes."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner

from saccade.tools.dense.backbone import Backbone
from saccade.tools.dense.config import (
    data_config,
    dense_config,
    load_base,
    model_config,
    optimizer_config,
    schedule_config,
    share_of,
)
from saccade.tools.dense.roi_extractor import SingleRoIExtractor
from saccade.tools.errors import UserError

from .toolbox_models import CLASSES, batch, build, settings_of

FEW = ["+detector.changes.train_cfg.rpn_proposal.max_per_img=20", "+detector.changes.test_cfg.rpn.max_per_img=20"]
HEADS = {
    "detection/mask_rcnn_nat_tiny_3x": ("nat_nano", FEW),
    "detection/cascade_mask_rcnn_nat_tiny_3x": ("nat_nano", FEW),
    "detection/retinanet_van_b0_1x": ("van_nano", []),
    "detection/atss_van_b2_3x": ("van_nano", []),
    "detection/gfl_van_b2_3x": ("van_nano", []),
    "detection/sparse_rcnn_focalnet_tiny_lrf_fused_3x": ("focalnet_nano", []),
    "detection/dino_focalnet_large_fl4_fused_1x": ("focalnet_nano", ["+detector.changes.num_queries=100"]),
    "detection/mask2former_dinat_large_coco_panoptic": ("nat_nano", ["data.num_stuff_classes=3", "data.size=[64,96]"]),
    "detection/mask2former_dinat_large_coco_instance": ("nat_nano", ["data.size=[64,96]"]),
    "segmentation/upernet_focalnet_tiny_srf_fused_160k": ("focalnet_nano", ["data.size=[64,96]"]),
    "segmentation/semantic_fpn_litv2_small_80k": ("litv2_nano", ["data.size=[64,96]"]),
    "segmentation/mask2former_dinat_large_ade20k_160k": ("nat_nano", ["data.size=[64,96]"]),
}


@pytest.mark.parametrize("recipe", HEADS)
def test_every_head_trains_and_predicts(recipe):
    name, overrides = HEADS[recipe]
    settings = settings_of(
        recipe,
        f"data.num_classes={CLASSES}",
        "model.drop_path_rate=0",  # with two pictures a block could be left out altogether
        *overrides,
        name=name,
        pretrained=False,
        weights=None,
        kwargs={},
    )
    torch.manual_seed(0)
    model = build(settings).train()
    model.init_weights()
    assert isinstance(model.backbone, Backbone)
    optimizer = build_optim_wrapper(
        model, {"type": "OptimWrapper", **optimizer_config(settings.optimizer, settings.model)}
    )
    before = {key: value.clone() for key, value in model.named_parameters()}
    losses = model.train_step(batch(model), optimizer)
    assert all(torch.isfinite(loss).all() for loss in losses.values()) and losses["loss"] > 0
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    # Of two pictures not every level and every class gets a share; the backbone learns all over.
    assert not any(key.startswith("backbone.") for key in still) and len(still) < 0.2 * len(before)

    sample = model.eval().test_step(batch(model))[0]
    if "segmentation/" in recipe:
        assert sample.pred_sem_seg.shape == (64, 96) and sample.seg_logits.data.shape[0] == CLASSES
    elif "panoptic" in recipe:
        assert sample.pred_panoptic_seg.sem_seg.shape[-2:] == (64, 96)
    else:
        found = sample.pred_instances
        assert found.bboxes.shape == (len(found.scores), 4) and (len(found) == 0 or found.labels.max() < CLASSES)


# Millions of parameters as the repositories state them.
SIZES = {
    "detection/mask_rcnn_nat_mini_3x": 40,
    "detection/mask_rcnn_dinat_small_3x": 70,
    "detection/cascade_mask_rcnn_nat_base_3x": 147,
    "detection/cascade_mask_rcnn_dinat_large_3x": 258,
    "detection/cascade_mask_rcnn_dinat_s_tiny_3x": 86,
    "detection/mask2former_dinat_large_coco_panoptic": 220,
    "segmentation/mask2former_dinat_large_ade20k_160k": 220,
    "segmentation/upernet_dinat_large_160k": 238,
    "segmentation/upernet_dinat_s_small_160k": 81,
    "segmentation/upernet_nat_tiny_160k": 58,
    "segmentation/upernet_van_b2_160k": 57,
    "segmentation/upernet_van_b3_160k": 75,
    "detection/retinanet_litv2_small_1x": 38,
    "detection/retinanet_litv2_base_ws4_1x": 97,
    "detection/mask_rcnn_litv2_medium_1x": 68,
    "segmentation/semantic_fpn_litv2_small_80k": 31,
    "segmentation/semantic_fpn_litv2_base_80k": 90,
    "detection/mask_rcnn_focalnet_tiny_srf_fused_1x": 48.6,
    "detection/mask_rcnn_focalnet_small_lrf_fused_3x": 72.3,
    "detection/cascade_mask_rcnn_focalnet_tiny_lrf_fused_3x": 87.1,
    "detection/atss_focalnet_tiny_lrf_fused_3x": 37.2,
    "detection/sparse_rcnn_focalnet_tiny_lrf_fused_3x": 111.2,
    "segmentation/upernet_focalnet_base_srf_fused_160k": 124,
}


@pytest.mark.parametrize("recipe", SIZES)
def test_size_is_the_published_one(recipe):
    settings = settings_of(recipe)
    with torch.device("meta"):
        model = build(settings)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(SIZES[recipe], abs=0.6 if isinstance(SIZES[recipe], int) else 0.15)


def rates_and_decays(recipe):
    """Rate and decay of each parameter of a recipe's model with a nano backbone."""
    settings = settings_of(recipe, name="nat_nano", pretrained=False, weights=None, kwargs={"layer_scale": 1e-5})
    model = build(settings)
    wrapper = build_optim_wrapper(
        model, {"type": "OptimWrapper", **optimizer_config(settings.optimizer, settings.model)}
    )
    groups = {id(group["params"][0]): (group["lr"], group["weight_decay"]) for group in wrapper.param_groups}
    return {name: groups[id(parameter)] for name, parameter in model.named_parameters()}


def test_what_decays():
    """NAT's rule: nothing called norm or rpb; layer scale and biases do decay."""
    of = rates_and_decays("detection/mask_rcnn_nat_tiny_3x")
    block = "backbone.body.model.stages.1.blocks.0."
    assert {of[block + name] for name in ("norm1.weight", "norm2.bias", "mixer.rpb")} == {(1e-4, 0.0)}
    assert {of[block + name] for name in ("ls1.gamma", "mixer.qkv.weight", "mlp.fc1.bias")} == {(1e-4, 0.05)}
    assert of["backbone.body.model.out_norms.0.weight"] == (1e-4, 0.0)
    assert of["rpn_head.rpn_conv.weight"] == (1e-4, 0.05)


def test_what_decays_in_mask2former():
    """Norms and embeddings do not, the bias table does; the backbone learns at a tenth."""
    of = rates_and_decays("detection/mask2former_dinat_large_coco_panoptic")
    model = "backbone.body.model."
    norms = ("stem.norm.weight", "stages.1.blocks.0.norm1.bias", "stages.2.downsample.norm.weight", "out_norms.3.bias")
    assert {of[model + name] for name in norms} == {(1e-5, 0.0)}
    assert {of[model + f"stages.1.blocks.0.mixer.{name}"] for name in ("rpb", "qkv.bias")} == {(1e-5, 0.05)}
    head = "panoptic_head."
    rest = ("transformer_decoder.layers.0.norms.0.weight", "pixel_decoder.input_convs.0.gn.bias", "query_embed.weight")
    assert {of[head + name] for name in rest} == {(1e-4, 0.0)}
    assert of[head + "cls_embed.weight"] == (1e-4, 0.05)


def course(settings, steps, iterations):
    """Learning rates of a schedule that counts iterations, of the first ones."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    built = [
        PARAM_SCHEDULERS.build({**part, "optimizer": optimizer}) for part in schedule_config(settings.schedule, steps)
    ]
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in built:
            scheduler.step()
    return rates


def test_rate_of_segmentation():
    """mmcv 1's: the polynomial from the first iteration on, times the warm-up; an update of two steps counts twice."""
    small = ["schedule.iterations=50", "schedule.warmup_iterations=10", "schedule.warmup_factor=0.01"]
    settings = settings_of("segmentation/upernet_nat_tiny_160k", *small)
    expected = [(1 - i / 50) * (1 - (1 - min(i, 10) / 10) * 0.99) for i in range(50)]
    assert course(settings, 1, 50) == pytest.approx(expected)
    assert course(settings, 2, 100)[::2] == pytest.approx(expected, rel=0.01)
    settings = settings_of("segmentation/semantic_fpn_litv2_small_80k", "schedule.iterations=50", "schedule.min_lr=0.1")
    assert course(settings, 1, 50) == pytest.approx([0.1 + 0.9 * (1 - i / 50) ** 0.9 for i in range(50)])


def test_rate_of_mask2former_drops():
    rates = course(settings_of("detection/mask2former_dinat_large_coco_panoptic", "schedule.milestones=[3,6]"), 2, 16)
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 4)


@pytest.mark.parametrize(
    ("batch_size", "processes", "most", "share"),
    [(16, 8, 2, 2), (16, 1, 2, 2), (12, 2, 4, 3), (16, 4, None, 4), (7, 1, 4, 1)],
)
def test_share_of_a_batch(batch_size, processes, most, share):
    assert share_of(batch_size, processes, most) == share


def test_batch_that_cannot_be_shared():
    with pytest.raises(UserError, match="batch_size=10 is not valid: it must be a multiple of the 4 processes"):
        share_of(10, 4, None)


def test_whole_config(monkeypatch, tmp_path):
    """One process accumulates what eight would do at once; only a GPU computes in half precision."""
    one = dense_config(settings_of("segmentation/upernet_nat_tiny_160k"), tmp_path)
    assert (one.train_dataloader.batch_size, one.optim_wrapper.accumulative_counts) == (2, 8)
    assert (one.train_cfg.max_iters, one.train_cfg.val_interval) == (8 * 160_000, 8 * 16_000)
    assert (one.launcher, one.train_dataloader.sampler.type) == ("none", "InfiniteSampler")
    assert one.model.decode_head.norm_cfg.type == "BN" and one.model.data_preprocessor.size == (512, 512)
    monkeypatch.setenv("WORLD_SIZE", "8")
    eight = dense_config(settings_of("segmentation/upernet_nat_tiny_160k", "runtime.device=cuda"), tmp_path)
    assert (eight.train_dataloader.batch_size, eight.optim_wrapper.accumulative_counts) == (2, 1)
    assert (eight.train_cfg.max_iters, eight.launcher) == (160_000, "pytorch")
    assert (eight.optim_wrapper.type, eight.optim_wrapper.dtype) == ("AmpOptimWrapper", "float16")
    assert eight.model.decode_head.norm_cfg.type == "SyncBN"
    van = dense_config(settings_of("segmentation/upernet_van_b0_160k", "runtime.device=cuda"), tmp_path)
    assert van.model.backbone.sync_norms
    cpu = dense_config(settings_of("segmentation/upernet_nat_tiny_160k", "runtime.device=cpu"), tmp_path)
    assert cpu.optim_wrapper.type == "OptimWrapper"
    assert not dense_config(settings_of("segmentation/upernet_van_b0_160k"), tmp_path).model.backbone.sync_norms


def test_data_of_detection():
    data = settings_of("detection/mask_rcnn_nat_tiny_3x").data
    config = data_config(data, 2, endless=False)
    train, evaluated = config["train_dataloader"], config["val_dataloader"]
    assert [step.type for step in train.dataset.pipeline] == [
        *("LoadImageFromFile", "LoadAnnotations", "RandomFlip", "RandomChoice", "PackDetInputs")
    ]
    scales = train.dataset.pipeline[3].transforms[0][0].scales
    assert scales[0] == (480, 1333) and len(scales) == 11
    assert (train.dataset.data_root, train.dataset.ann_file) == ("/data", "annotations/instances_train2017.json")
    assert evaluated.dataset.ann_file == "annotations/instances_val2017.json"
    assert config["val_evaluator"].ann_file == "/data/annotations/instances_val2017.json"
    moved = settings_of("detection/mask_rcnn_nat_tiny_3x", "data.eval.ann_file=mine.json", "data.metrics=[bbox]").data
    evaluator = data_config(moved, 2, endless=False)["val_evaluator"]
    assert (evaluator.ann_file, evaluator.metric) == ("/data/mine.json", ["bbox"])


def test_data_of_panoptic_segmentation():
    """Both evaluators find their files: the maps', and the instances' beside them."""
    recipe = "detection/mask2former_dinat_large_{}"
    panoptic, instances = data_config(settings_of(recipe.format("coco_panoptic")).data, 2, endless=True)[
        "val_evaluator"
    ]
    assert (panoptic.ann_file, panoptic.seg_prefix) == (
        "/data/annotations/panoptic_val2017.json",
        "/data/annotations/panoptic_val2017",
    )
    assert instances.ann_file == "/data/annotations/instances_val2017.json"
    coco, cityscapes = data_config(settings_of(recipe.format("cityscapes_instance")).data, 2, endless=True)[
        "val_evaluator"
    ]
    assert coco.ann_file == "/data/annotations/instancesonly_filtered_gtFine_val.json"
    assert cityscapes.seg_prefix == "/data/gtFine/val"


def test_images_stretched_to_multiples_of_32():
    """VAN's evaluation; the map to compare with keeps its size."""
    import numpy as np
    from mmcv.transforms import Compose

    init_default_scope("mmseg")
    pipeline = data_config(settings_of("segmentation/upernet_van_b0_160k").data, 2, endless=True)["val_dataloader"]
    kept = [step for step in pipeline.dataset.pipeline if not step.type.startswith(("Load", "Pack"))]
    out = Compose(kept)({"img": np.zeros((300, 403, 3), np.uint8), "seg_fields": []})
    assert out["img"].shape == (512, 704, 3)


@pytest.mark.parametrize("recipe", ["ade20k_panoptic", "ade20k_instance", "cityscapes_instance", "coco_instance"])
def test_transforms_can_be_built(recipe):
    """The toolboxes know every transform of a pipeline, and its options; loading panoptic maps needs panopticapi."""
    from mmcv.transforms import Compose

    init_default_scope("mmdet")
    config = data_config(settings_of(f"detection/mask2former_dinat_large_{recipe}").data, 2, endless=True)
    dataset = config["train_dataloader"].dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    for pipeline in (dataset.pipeline, config["val_dataloader"].dataset.pipeline):
        steps = [step for step in pipeline if step.type != "LoadPanopticAnnotations"]
        assert len(Compose(steps).transforms) == len(steps) >= 3


def test_classes_of_mask2former():
    head = model_config(settings_of("detection/mask2former_dinat_large_ade20k_panoptic")).panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes, head.num_queries) == (100, 50, 200)
    assert head.loss_cls.class_weight == [1.0] * 150 + [0.1] and head.in_channels == [192, 384, 768, 1536]
    semantic = model_config(settings_of("segmentation/mask2former_dinat_large_cityscapes_90k")).decode_head
    assert (semantic.num_classes, semantic.loss_cls.class_weight) == (19, [1.0] * 19 + [0.1])


def test_unknown_base():
    with pytest.raises(UserError, match=r"^mmdet::nowhere\.py: mmdet has no such config; they are in .*configs$"):
        load_base("mmdet::nowhere.py")


def test_backbone_is_found_by_both_toolboxes():
    """Registered once, under mmengine's root, and imported by mmengine itself."""
    from mmdet.registry import MODELS as OF_MMDET
    from mmseg.registry import MODELS as OF_MMSEG

    assert OF_MMDET.get("saccade.Backbone") is OF_MMSEG.get("saccade.Backbone") is Backbone
    assert isinstance(OF_MMDET.build({"type": "saccade.Backbone", "name": "nat_nano"}), Backbone)


def test_regions_are_pooled_at_full_precision():
    """Under autocast mmdet's own extractor rounds the corners of regions; ours does not, whatever the strides."""
    model = build(settings_of("detection/mask_rcnn_nat_tiny_3x", *FEW, name="nat_nano", pretrained=False))
    extractor = model.roi_head.bbox_roi_extractor
    assert isinstance(extractor, SingleRoIExtractor)
    maps = [torch.randn(1, 256, 64 // 2**i, 64 // 2**i) for i in range(4)]
    regions = torch.tensor([[0, 3.3, 5.7, 201.3, 177.9]])
    expected = extractor(maps, regions)
    low = [feature.bfloat16().to(memory_format=torch.channels_last) for feature in maps]
    with torch.autocast("cpu", torch.bfloat16):
        got = extractor(low, regions)
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)


def test_runner_takes_the_config(tmp_path):
    """mmengine accepts what we compose, down to the optimiser and the schedule."""
    settings = settings_of("detection/mask_rcnn_nat_tiny_3x", "runtime.device=cpu", name="nat_nano", pretrained=False)
    config = dense_config(settings, tmp_path)
    config.experiment_name = "composed"
    for name in ("train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator", "test_evaluator"):
        config[name] = None
    for name in ("train_cfg", "val_cfg", "test_cfg", "optim_wrapper", "param_scheduler"):
        config[name] = None
    runner = Runner.from_cfg(config)
    assert isinstance(runner.model.backbone, Backbone)
