"""Which images make up which batch."""

import pytest

from saccade.tools.engine.sampling import EvaluationBatches, TrainingBatches, plan_batch
from saccade.tools.errors import UserError


@pytest.mark.parametrize(
    ("total", "processes", "most", "accumulation", "micro"),
    [(1024, 8, None, 1, 128), (1024, 8, 128, 1, 128), (1024, 1, 256, 4, 256), (96, 2, 20, 3, 16), (7, 7, 4, 1, 1)],
)
def test_plan(total, processes, most, accumulation, micro):
    plan = plan_batch(total, processes, most)
    assert (plan.accumulation, plan.micro) == (accumulation, micro)
    assert plan.processes * plan.accumulation * plan.micro == plan.total == total


@pytest.mark.parametrize(
    ("total", "processes", "most", "message"),
    [
        (10, 4, None, "10 does not divide over 4 processes: 8 or 12"),
        (3, 4, None, "4 would"),
        (254, 2, 64, "no divisor"),
    ],
)
def test_batches_that_do_not_divide(total, processes, most, message):
    with pytest.raises(UserError, match=message):
        plan_batch(total, processes, most)


def global_batches(processes: int, most: int | None, epoch: int = 3, update: int = 0) -> list[set[int]]:
    """The images of each update, put together from what every process gets."""
    plan = plan_batch(12, processes, most)
    updates: list[list[int]] = [[] for _ in range(100 // 12)]
    for rank in range(processes):
        batches = TrainingBatches(100, plan, rank, seed=5)
        batches.start(epoch, update)
        keys = list(batches)
        assert len(keys) == len(batches) == (100 // 12 - update) * plan.accumulation
        assert all(found == epoch and len(batch) == plan.micro for batch in keys for found, _ in batch)
        for step, batch in enumerate(keys):
            updates[update + step // plan.accumulation] += [index for _, index in batch]
    assert all(len(batch) == len(set(batch)) for batch in updates)
    return [set(batch) for batch in updates]


def test_every_layout_makes_the_same_global_batches():
    expected = global_batches(1, None)
    assert len(set.union(*expected)) == 96 and all(len(batch) == 12 for batch in expected)
    for layout in ((1, 4), (2, None), (2, 3), (3, 2), (4, None)):
        assert global_batches(*layout) == expected
    assert global_batches(1, None, epoch=4) != expected


def test_start_in_mid_epoch_goes_on_where_it_stopped():
    assert global_batches(2, 3, update=5)[5:] == global_batches(1, None)[5:]


def test_epochs_and_seeds_differ_in_order():
    plan = plan_batch(10, 1, None)
    orders = set()
    for seed in (0, 1):
        batches = TrainingBatches(100, plan, 0, seed)
        for epoch in (0, 1):
            batches.start(epoch)
            orders.add(tuple(index for batch in batches for _, index in batch))
    assert len(orders) == 4


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_evaluation_counts_every_image_once(processes):
    seen = []
    for rank in range(processes):
        batches = EvaluationBatches(20, 4, rank, processes)
        parts = list(batches)
        assert len(parts) == len(batches)
        seen += [index for batch in parts for _, index in batch]
    assert sorted(seen) == list(range(20))
