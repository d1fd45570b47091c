"""Which images make up which batch: the same global batches whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ..errors import UserError
from .seeding import ORDER, derive_seed


@dataclass(frozen=True)
class BatchPlan:
    """How one update's total batch is cut: `total = processes * accumulation * micro`."""

    total: int
    processes: int
    accumulation: int
    micro: int


def plan_batch(total: int, processes: int, most: int | None) -> BatchPlan:
    """Cut a total batch over the processes, and over accumulation steps if a process holds at most `most` images.

    Errors:
        UserError: the batch does not divide, or divides only into needlessly small pieces.
    """
    if total % processes:
        below, above = total // processes * processes, -(-total // processes) * processes
        valid = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"batch_size={total} does not divide over {processes} processes: {valid} would")
    share = total // processes
    steps = -(-share // most) if most else 1
    while share % steps:
        steps += 1
    micro = share // steps
    if most and micro * 2 < min(most, share):
        raise UserError(
            f"batch_size={total} gives each of {processes} processes {share} images, which has no divisor between "
            f"{min(most, share) // 2 + 1} and runtime.max_batch_per_process={most}: change one of the two"
        )
    return BatchPlan(total, processes, steps, micro)


class TrainingBatches(Sampler):
    """This process's micro-batches of one epoch: lists of (epoch, index) keys.

    Every epoch is a fresh permutation that depends on the seed and the epoch alone; global batch `u` is its `u`-th run
    of `plan.total` indices, of which every process takes an equal share in rank order. The tail that fills no batch is
    dropped. `start(epoch, update)` makes the next pass begin in mid-epoch.
    """

    def __init__(self, images: int, plan: BatchPlan, rank: int, seed: int):
        if images < plan.total:
            raise UserError(f"batch_size={plan.total} is larger than the training set of {images} images")
        self.images, self.plan, self.rank, self.seed = images, plan, rank, seed
        self.updates = images // plan.total
        self.epoch = self.first_update = 0

    def start(self, epoch: int, update: int = 0) -> None:
        self.epoch, self.first_update = epoch, update

    def __len__(self) -> int:
        return (self.updates - self.first_update) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, plan = self.epoch, self.plan
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, epoch) % 2**63)
        order = torch.randperm(self.images, generator=generator).tolist()
        for update in range(self.first_update, self.updates):
            for step in range(plan.accumulation):
                first = update * plan.total + (step * plan.processes + self.rank) * plan.micro
                yield [(epoch, index) for index in order[first : first + plan.micro]]


class EvaluationBatches(Sampler):
    """This process's batches of an evaluation: every image exactly once over all processes, no padding."""

    def __init__(self, images: int, batch: int, rank: int, processes: int):
        self.indices = range(rank, images, processes)
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.indices), self.batch):
            yield [(0, index) for index in self.indices[first : first + self.batch]]
