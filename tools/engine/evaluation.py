"""Accuracy and loss over an evaluation set, each image counted once whatever the number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .console import Console
from .distributed import Processes
from .loading import Loader
from .precision import autocast


@torch.inference_mode()
def evaluate(
    forward: Callable[[torch.Tensor], torch.Tensor],
    loader: Loader,
    processes: Processes,
    console: Console,
    precision: str = "float32",
    channels_last: bool = False,
) -> dict[str, float]:
    """Top-1 and top-5 in percent, mean cross-entropy, number of images and images per second.

    `forward` maps images `[B, C, H, W]` to logits `[B, classes]` in evaluation mode. With fewer than five classes,
    top-5 counts all of them.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=processes.device)  # top-1, top-5, loss, images
    began = time.perf_counter()
    for images, targets in console.progress(loader, len(loader), "evaluate"):
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(precision, processes.device):
            logits = forward(images)
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="none").double()
        totals += torch.stack(
            [hits[:, 0].sum().double(), hits.sum().double(), loss.sum(), totals.new_tensor(len(targets))]
        )
    top1, top5, loss, images = processes.sum(totals).tolist()
    seconds = time.perf_counter() - began
    return {
        "top1": 100 * top1 / images,
        "top5": 100 * top5 / images,
        "loss": loss / images,
        "images": int(images),
        "images_per_second": images / seconds,
    }
