"""What papers and repositories publish on detection and segmentation: settings and results of every recipe."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row; `figures` are the results, in the order the repository states them."""

    recipe: str
    model: str
    figures: tuple[float, ...]
    drop_path: float
    lr: float
    weight_decay: float
    no_decay: tuple[str, ...]
    length: int  # epochs of detection, iterations of segmentation and of Mask2Former
    batch: int = 16
    precision: str = "float32"
    norms: bool | tuple[int, ...] = False
    weights: str | None = None  # where it starts from, if that is not the model's ImageNet-1k weights


def _shi() -> list[Published]:
    """SHI-Labs/Neighborhood-Attention-Transformer: NAT.md, DiNAT.md and the configs of detection and segmentation."""
    mask = {
        "nat_mini": (0.2, 46.5, 41.7),
        "nat_tiny": (0.2, 47.7, 42.6),
        "nat_small": (0.35, 48.4, 43.2),
        "dinat_mini": (0.2, 47.2, 42.5),
        "dinat_tiny": (0.2, 48.6, 43.5),
        "dinat_small": (0.35, 49.3, 44.0),
        "dinat_s_tiny": (0.2, 46.6, 42.1),
        "dinat_s_small": (0.35, 48.6, 43.5),
    }
    cascade = {
        "nat_mini": (0.2, 50.3, 43.6),
        "nat_tiny": (0.3, 51.4, 44.5),
        "nat_small": (0.3, 52.0, 44.9),
        "nat_base": (0.5, 52.3, 45.1),
        "dinat_mini": (0.2, 51.2, 44.4),
        "dinat_tiny": (0.3, 52.2, 45.1),
        "dinat_small": (0.5, 52.9, 45.8),
        "dinat_base": (0.6, 53.4, 46.2),
        "dinat_large": (0.6, 55.3, 47.8),
        "dinat_s_tiny": (0.3, 51.0, 44.1),
        "dinat_s_small": (0.5, 52.3, 45.2),
        "dinat_s_base": (0.6, 52.6, 45.3),
        "dinat_s_large": (0.6, 54.8, 47.2),
    }
    upernet = {
        "nat_mini": (0.2, 45.1, 46.4),
        "nat_tiny": (0.3, 47.1, 48.4),
        "nat_small": (0.5, 48.0, 49.5),
        "nat_base": (0.5, 48.5, 49.7),
        "dinat_mini": (0.2, 45.8, 47.2),
        "dinat_tiny": (0.3, 47.8, 48.8),
        "dinat_small": (0.5, 48.9, 49.9),
        "dinat_base": (0.5, 49.6, 50.4),
        "dinat_large": (0.3, 54.0, 54.9),
        "dinat_s_tiny": (0.3, 46.0, 47.4),
        "dinat_s_small": (0.3, 48.6, 49.9),
        "dinat_s_base": (0.3, 49.4, 50.2),
        "dinat_s_large": (0.3, 53.4, 54.6),
    }
    rates = {"dinat_base": 7.5e-5, "dinat_large": 7.5e-5, "dinat_s_base": 7.5e-5, "dinat_s_large": 5e-5}
    rows = []
    for name, table, lr_of, weight_decay, length in (
        ("detection/mask_rcnn_{}_3x", mask, rates, 0.05, 36),
        ("detection/cascade_mask_rcnn_{}_3x", cascade, rates, 0.05, 36),
        ("segmentation/upernet_{}_160k", upernet, None, 0.01, 160_000),
    ):
        for model, (drop_path, *figures) in table.items():
            rows.append(
                Published(
                    name.format(model),
                    model,
                    tuple(figures),
                    drop_path,
                    6e-5 if lr_of is None else lr_of.get(model, 1e-4),
                    weight_decay,
                    ("norm", "rpb"),
                    length,
                    precision="float32" if model == "dinat_large" else "float16",
                    norms=True,
                    weights=f"{model}.shi_in22k" if "large" in model else None,
                )
            )
    mask2former = {
        "detection/mask2former_dinat_large_coco_instance": ((50.8,), 737_500),
        "detection/mask2former_dinat_large_coco_panoptic": ((58.5, 49.2, 68.3), 737_500),
        "detection/mask2former_dinat_large_ade20k_instance": ((35.4,), 160_000),
        "detection/mask2former_dinat_large_ade20k_panoptic": ((49.4, 35.0, 56.3), 160_000),
        "detection/mask2former_dinat_large_cityscapes_instance": ((45.1,), 90_000),
        "segmentation/mask2former_dinat_large_ade20k_160k": ((58.1,), 160_000),
        "segmentation/mask2former_dinat_large_cityscapes_90k": ((84.5,), 90_000),
    }
    for recipe, (figures, length) in mask2former.items():
        embeddings = ("query_embed", "query_feat", "level_embed")
        start = "dinat_large_384_11x11.shi_in22k"
        rows.append(
            Published(recipe, "dinat_large", figures, 0.3, 1e-4, 0.05, embeddings, length, norms=True, weights=start)
        )
    return rows


def _van() -> list[Published]:
    """The paper's tables (no detection code was released) and VAN-Segmentation's configs."""
    rows = []
    drop_path = {"van_b0": 0.1, "van_b1": 0.1, "van_b2": 0.1, "van_b3": 0.3}
    one = {
        "detection/retinanet_{}_1x": ((38.8,), (42.3,), (44.9,), (47.5,)),
        "detection/mask_rcnn_{}_1x": ((40.2, 37.6), (42.6, 38.9), (46.4, 41.8), (48.3, 43.4)),
    }
    for name, figures in one.items():
        for (model, rate), figure in zip(drop_path.items(), figures, strict=True):
            rows.append(Published(name.format(model), model, figure, rate, 1e-4, 0.05, ("norm",), 12))
    for head, figure in (("mask_rcnn", 48.8), ("cascade_mask_rcnn", 52.0), ("atss", 50.2), ("gfl", 50.8)):
        rows.append(Published(f"detection/{head}_van_b2_3x", "van_b2", (figure,), 0.1, 1e-4, 0.05, ("norm",), 36))
    embeddings = ("query_embed", "query_feat", "level_embed")
    for model, figure, rate, weights in (("van_b2", 54.9, 0.1, None), ("van_b6", 58.2, 0.5, "van_b6.van_in22k")):
        recipe = f"detection/mask2former_{model}_coco_panoptic"
        rows.append(Published(recipe, model, (figure,), rate, 1e-4, 0.05, embeddings, 368_750, weights=weights))
    for model, tag, figure, rate, batch, weights in (
        ("van_b0", "", 41.1, 0.1, 16, None),
        ("van_b1", "", 44.9, 0.1, 16, None),
        ("van_b2", "", 50.1, 0.1, 16, None),
        ("van_b3", "", 50.6, 0.3, 16, None),
        ("van_b4", "", 52.2, 0.4, 32, "van_b4.van_in1k"),
        ("van_b4", "_in22k", 53.5, 0.4, 32, "van_b4.van_in22k"),
        ("van_b5", "_in22k", 53.9, 0.4, 16, "van_b5.van_in22k"),
        ("van_b6", "_in22k", 54.7, 0.5, 16, "van_b6.van_in22k"),
    ):
        recipe = f"segmentation/upernet_{model}{tag}_160k"
        rows.append(Published(recipe, model, (figure,), rate, 6e-5, 0.01, ("norm",), 160_000, batch, weights=weights))
    for model, figure, rate in (
        ("van_b0", 38.5, 0.2),
        ("van_b1", 42.9, 0.2),
        ("van_b2", 46.7, 0.2),
        ("van_b3", 48.1, 0.3),
    ):
        recipe = f"segmentation/semantic_fpn_{model}_40k"
        rows.append(Published(recipe, model, (figure,), rate, 2e-4, 1e-4, (), 40_000, batch=32))
    return rows


def _litv2() -> list[Published]:
    """ziplab/LITv2: README and configs of detection and segmentation; figures with windows of 2, then of 4."""
    rows = []
    tables = {
        ("retinanet", 1e-4, ()): {
            "litv2_small": ((44.0,), (43.7,)),
            "litv2_medium": ((46.0,), (45.8,)),
            "litv2_base": ((46.7,), (46.3,)),
        },
        ("mask_rcnn", 2e-4, ("norm",)): {
            "litv2_small": ((44.9, 40.8), (44.7, 40.7)),
            "litv2_medium": ((46.8, 42.3), (46.5, 42.0)),
            "litv2_base": ((47.3, 42.6), (46.8, 42.3)),
        },
    }
    for (head, lr, no_decay), table in tables.items():
        for model, both in table.items():
            for suffix, figures in zip(("", "_ws4"), both, strict=True):
                rate = 0.3 if model == "litv2_base" else 0.2
                recipe = f"detection/{head}_{model}{suffix}_1x"
                more = {"precision": "float16", "norms": (1, 2, 3)}
                rows.append(Published(recipe, model, figures, rate, lr, 1e-4, no_decay, 12, **more))
    for model, figure, rate in (("litv2_small", 44.3, 0.2), ("litv2_medium", 45.7, 0.2), ("litv2_base", 47.2, 0.3)):
        recipe = f"segmentation/semantic_fpn_{model}_80k"
        rows.append(Published(recipe, model, (figure,), rate, 1e-4, 1e-4, (), 80_000, norms=True))
    return rows


def _focalnet() -> list[Published]:
    """microsoft/FocalNet: README and configs of detection and segmentation."""
    rows = []
    table = {  # drop path of 1x and 3x; boxes and masks of 1x, of 3x; mIoU, multi-scale
        "tiny_srf": (0.1, 0.3, (45.9, 41.3), (47.6, 42.6), (46.5, 47.2)),
        "tiny_lrf": (0.1, 0.3, (46.1, 41.5), (48.0, 42.9), (46.8, 47.8)),
        "small_srf": (0.2, 0.5, (48.0, 42.7), (48.9, 43.6), (49.3, 50.1)),
        "small_lrf": (0.2, 0.5, (48.3, 43.1), (49.3, 43.8), (49.1, 50.1)),
        "base_srf": (0.3, 0.5, (48.8, 43.3), (49.6, 44.1), (50.2, 51.1)),
        "base_lrf": (0.3, 0.5, (49.0, 43.5), (49.8, 44.1), (50.5, 51.4)),
    }
    half = {"precision": "float16", "norms": True}
    for size, (one, three, one_x, three_x, miou) in table.items():
        model = f"focalnet_{size}_fused"
        for rate, figures, epochs, name in ((one, one_x, 12, "1x"), (three, three_x, 36, "3x")):
            recipe = f"detection/mask_rcnn_{model}_{name}"
            rows.append(Published(recipe, model, figures, rate, 1e-4, 0.05, ("norm",), epochs, **half))
        recipe = f"segmentation/upernet_{model}_160k"
        rows.append(Published(recipe, model, miou, 0.3, 6e-5, 0.01, ("norm",), 160_000, norms=True))
    lrf = "focalnet_tiny_lrf_fused"
    for head, figure, lr, weight_decay in (
        ("cascade_mask_rcnn", 51.5, 1e-4, 0.05),
        ("atss", 49.6, 1e-4, 0.05),
        ("sparse_rcnn", 49.9, 2.5e-5, 1e-4),
    ):
        recipe = f"detection/{head}_{lrf}_3x"
        sparse = head == "sparse_rcnn"
        more = {"precision": "float32" if sparse else "float16", "norms": True}
        rows.append(Published(recipe, lrf, (figure,), 0.3, lr, weight_decay, () if sparse else ("norm",), 36, **more))
    large = "focalnet_large_fl4_fused"  # FocalNet/FocalNet-DINO
    rows.append(Published(f"detection/dino_{large}_1x", large, (63.5,), 0.3, 1e-4, 1e-4, (), 12, norms=True))
    return rows


PUBLISHED = {row.recipe: row for family in (_shi, _van, _litv2, _focalnet) for row in family()}
