"""From a collection of images to batches on the device, every random choice a function of its position.

Workers crop and colour, seeded by (seed, epoch, image), and hand over bytes; the training process normalises, erases
and mixes on the device, seeded by (seed, epoch, batch, process). No stream of random numbers runs from batch to batch,
so a run continued in mid-epoch, or with another number of workers, sees the same pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import UserError
from .augmentation import Batch, BatchAugmentation, evaluation_transform, training_transform
from .datasets import Images
from .distributed import Processes
from .sampling import EvaluationBatches, TrainingBatches, plan_batch
from .seeding import SAMPLE, derive_seed, generators_kept, seed_generators
from .settings import Settings


class Samples(Dataset):
    """Transformed images by (epoch, index), a batch at a time; an unreadable image is returned as its error."""

    def __init__(self, images: Images, transform: Any, seed: int | None):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = key
        picture, label = self.images.read(index)
        if self.seed is not None:
            seed_generators(derive_seed(self.seed, SAMPLE, epoch, index))
        return self.transform(picture), label

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[torch.Tensor, int]] | UserError:
        try:
            if self.seed is None or get_worker_info() is not None:
                return [self[key] for key in keys]
            with generators_kept():
                return [self[key] for key in keys]
        except UserError as error:
            return error  # raised in a worker it would arrive with the worker's whole traceback as its text


def _collate(samples: list[tuple[torch.Tensor, int]] | UserError) -> Batch | UserError:
    return samples if isinstance(samples, UserError) else fast_collate(samples)


class Loader:
    """Batches of normalised images `[B, C, H, W]` and targets (`[B]` classes, or `[B, classes]` when mixed)."""

    def __init__(
        self,
        samples: Samples,
        batches: TrainingBatches | EvaluationBatches,
        data_config: dict[str, Any],
        device: torch.device,
        workers: int,
        augmentation: BatchAugmentation | None = None,
    ):
        self.batches, self.device, self.augmentation = batches, device, augmentation
        self.loader = DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=min(workers, os.cpu_count() or 1),
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            collate_fn=_collate,
            generator=torch.Generator(),  # else each pass would draw a number from the training's generator
        )
        mean, std = (torch.tensor(data_config[name], device=device) * 255 for name in ("mean", "std"))
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for step, batch in enumerate(self.loader):
            if isinstance(batch, UserError):
                raise batch
            images, targets = (part.to(self.device, non_blocking=True) for part in batch)
            images = images.float().sub_(self.mean).div_(self.std)
            if self.augmentation is not None:
                first = self.batches.first_update * self.batches.plan.accumulation
                images, targets = self.augmentation(images, targets, self.batches.epoch, first + step)
            yield images, targets


def training_loader(
    settings: Settings, images: Images, data_config: dict[str, Any], num_classes: int, processes: Processes
) -> Loader:
    """This process's share of the training batches; `.batches` says which epoch and update come next."""
    plan = plan_batch(settings.batch_size, processes.size, settings.runtime.max_batch_per_process)
    batches = TrainingBatches(len(images), plan, processes.rank, settings.seed)
    samples = Samples(images, training_transform(settings.augment, data_config), settings.seed)
    augmentation = BatchAugmentation(
        settings.augment, num_classes, settings.seed, plan.micro, processes.rank, processes.device
    )
    return Loader(samples, batches, data_config, processes.device, settings.data.workers, augmentation)


def evaluation_loader(settings: Settings, images: Images, data_config: dict[str, Any], processes: Processes) -> Loader:
    """This process's share of the held-out images, in order and unaltered."""
    most = settings.runtime.max_batch_per_process or settings.batch_size
    batch = min(most, max(1, settings.batch_size // processes.size))
    batches = EvaluationBatches(len(images), batch, processes.rank, processes.size)
    samples = Samples(images, evaluation_transform(data_config), seed=None)
    return Loader(samples, batches, data_config, processes.device, settings.data.workers)
