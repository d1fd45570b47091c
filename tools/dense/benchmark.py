"""`saccade benchmark dense`: how fast detectors and segmentors train on ours and on Swin, at real sizes of input.

A step is forward, losses, backward and AdamW on synthetic images of one size, under bfloat16 autocast on a GPU, in
plain eager mode as the toolboxes train; `compile=true` compiles the backbone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from ..benchmark import call_seconds, show, write_rows
from ..errors import UserError, check_choice
from .config import model_config
from .settings import Settings, read_settings
from .toolboxes import check_toolboxes

# What the published recipes of each say beside its name.
BACKBONES = {
    "nat_tiny": ["model.out_norms=true"],
    "van_b2": ["+model.kwargs.norm_eps=1e-5"],
    "focalnet_tiny_srf_fused": ["model.out_norms=true", "+model.kwargs.focal_windows=9"],
    "swin_tiny_patch4_window7_224": ["model.out_norms=true"],
}
RECIPES = {
    "Mask R-CNN": "detection/mask_rcnn_nat_tiny_3x",
    "UPerNet": "segmentation/upernet_nat_tiny_160k",
}
# head, images, height, width
CASES = (("Mask R-CNN", 2, 800, 1333), ("UPerNet", 8, 512, 512), ("UPerNet", 2, 512, 2048))
REDUCED = (("Mask R-CNN", 1, 64, 96), ("UPerNet", 2, 64, 64))


def rows(device: torch.device, models: list[str], compiled: bool) -> Iterator[dict]:
    """Measure training of every case with every backbone."""
    cuda = device.type == "cuda"
    for head, images, height, width in CASES if cuda else REDUCED:
        for name in models:
            row = {"case": f"{head}, {images} images of {height}x{width}", "implementation": name}
            try:
                row |= measure(head, name, (images, height, width), device, compiled)
            except torch.OutOfMemoryError as error:
                row["error"] = str(error).splitlines()[0]
            yield row


def measure(
    head: str, backbone: str, batch: tuple[int, int, int], device: torch.device, compiled: bool
) -> dict[str, float]:
    """Return images per second, and on a GPU the peak memory, of training steps on `batch`: images, height, width."""
    from mmengine.registry import MODELS, init_default_scope

    cuda = device.type == "cuda"
    torch.manual_seed(0)
    settings = settings_of(head, backbone, batch[1:])
    init_default_scope(settings.architecture.base.split("::")[0])
    model = MODELS.build(model_config(settings, sync_norms=False)).to(device).train()
    if compiled:
        model.backbone.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=cuda)
    data = model.data_preprocessor(synthetic_batch(model, *batch), training=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            losses, _ = model.parse_losses(model(**data, mode="loss"))
        losses.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    row = {"train_images_per_s": batch[0] / call_seconds(step, cuda)}
    if cuda:
        row["train_peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def settings_of(head: str, backbone: str, size: tuple[int, int]) -> Settings:
    """Return a recipe's settings with another backbone, untrained, and for crops of `size` where it has crops."""
    changes = [f"model.name={backbone}", "model.pretrained=false", "model.out_norms=false", "data.root=."]
    changes += BACKBONES.get(backbone, [])
    if head == "UPerNet":
        changes.append(f"data.size=[{size[0]},{size[1]}]")
    with initialize_config_module("saccade.recipes", version_base="1.3"):
        return read_settings(compose(RECIPES[head], overrides=changes))


def synthetic_batch(model: nn.Module, images: int, height: int, width: int) -> dict:
    """Return random images with 20 boxes and their masks each, or with a map of classes, as a loader would."""
    inputs = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(images)]
    sample: Callable = _detection_sample if hasattr(model, "roi_head") else _segmentation_sample
    return {"inputs": inputs, "data_samples": [sample(height, width) for _ in range(images)]}


def _detection_sample(height: int, width: int, objects: int = 20):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    size = torch.tensor([width, height, width, height])
    corners = torch.rand(objects, 2)
    boxes = torch.cat([corners * 0.7, corners * 0.7 + 0.05 + 0.25 * torch.rand(objects, 2)], 1) * size
    masks = torch.stack([_inside(box, height, width) for box in boxes])
    instances = InstanceData(
        bboxes=boxes,
        labels=torch.randint(0, 80, (objects,)),
        masks=BitmapMasks(masks.numpy(), height, width),
    )
    shape = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    return DetDataSample(metainfo=shape, gt_instances=instances)


def _inside(box: Tensor, height: int, width: int) -> Tensor:
    """Return the ellipse in a box as a map of 0 and 1, [height, width]."""
    centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1).to(torch.uint8)


def _segmentation_sample(height: int, width: int):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    coarse = torch.randint(0, 150, (1, 1, height // 32, width // 32)).float()
    classes = torch.nn.functional.interpolate(coarse, (height, width)).long()[0]
    shape = {"img_shape": (height, width), "ori_shape": (height, width), "pad_shape": (height, width)}
    return SegDataSample(metainfo=shape, gt_sem_seg=PixelData(data=classes))


def main(words: list[str]) -> None:
    """Run from the command line.

    Errors:
        UserError: the toolboxes are missing, or a word is not one of the options.
    """
    check_toolboxes()
    options = {"out": "benchmarks", "device": "auto", "models": ",".join(BACKBONES), "compile": "false"}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise UserError(f"unexpected {word!r}: benchmark dense takes {', '.join(f'{k}=...' for k in options)}")
        options[key] = value
    check_choice("device", options["device"], ("auto", "cpu", "cuda"))
    compiled = check_choice("compile", options["compile"], ("true", "false")) == "true"
    cuda = torch.cuda.is_available() if options["device"] == "auto" else options["device"] == "cuda"
    device = torch.device("cuda" if cuda else "cpu")
    warnings.filterwarnings("ignore", module=r"mm(engine|cv|det|seg)\.")
    found = []
    for row in rows(device, options["models"].split(","), compiled):
        found.append(row)
        print(show(row), flush=True)
    write_rows("dense", found, Path(options["out"]), device)
