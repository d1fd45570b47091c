"""The order of training images and what their augmentation draws: functions of the seed and of the place in training,
so that a continued run sees what an unbroken one would have seen, whatever its number of loader processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler, Dataset, Sampler

from ..engine.seeding import ORDER, SAMPLE, derive_seed, generators_kept, seed_generators


class Draw(int):
    """An image's index that also knows its place in the whole training."""

    place: int

    def __new__(cls, index: int, place: int) -> Draw:
        draw = super().__new__(cls, index)
        draw.place = place
        return draw

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.place


@DATA_SAMPLERS.register_module()
class PlacedSampler(Sampler[Draw]):
    """This process's draws of one shuffled epoch, or of all epochs one after the other if `infinite`.

    A finite epoch is filled up with its first images until every process has as many as the others.
    """

    def __init__(self, dataset: Any, seed: int, infinite: bool = False):
        self.dataset, self.seed, self.infinite, self.epoch = dataset, seed, infinite, 0
        self.rank, self.processes = get_dist_info()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Draws of this process in one epoch."""
        return -(-len(self.dataset) // self.processes)

    def __iter__(self) -> Iterator[Draw]:
        epochs = map(self._order, count(self.epoch) if self.infinite else [self.epoch])
        return islice((draw for epoch in epochs for draw in epoch), self.rank, None, self.processes)

    def _order(self, epoch: int) -> Iterator[Draw]:
        images = len(self.dataset)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, epoch) % 2**63)
        order = torch.randperm(images, generator=generator).tolist()
        if not self.infinite:
            order += [order[i % images] for i in range(len(self) * self.processes - images)]
        return (Draw(index, epoch * len(order) + i) for i, index in enumerate(order))


@DATA_SAMPLERS.register_module()
class ResumableBatches(Sampler[list[int]]):
    """Batches that can start in the middle: of a sampler, or of the toolbox's own batch sampler `inner` over it."""

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False, inner: dict | None = None):
        self.sampler = sampler
        if inner is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(inner, default_args={"sampler": sampler, "batch_size": batch_size})
        self.batch_size, self.skipped = batch_size, 0

    def skip(self, batches: int) -> None:
        """Leave out this many batches at the next start."""
        self.skipped = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        # Only when the first batch is asked for: a loader with workers takes two iterators and uses the second.
        first, self.skipped = self.skipped, 0
        yield from islice(iter(self.batches), first, None)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A toolbox's data set whose transforms draw their random numbers from the seed and the image's place."""

    def __init__(self, dataset: dict, seed: int):
        self.dataset, self.seed = DATASETS.build(dataset), seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        with generators_kept():
            seed_generators(derive_seed(self.seed, SAMPLE, draw.place))
            return self.dataset[int(draw)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)
