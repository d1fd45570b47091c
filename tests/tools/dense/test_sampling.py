"""Order and augmentation are functions of the seed and the place."""

import pickle
from itertools import islice

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from saccade.tools.dense import sampling
from saccade.tools.dense.sampling import Draw, PlacedSampler, ResumableBatches, SeededDataset


@DATASETS.register_module()
class Noise:
    """Ten images, each with noise from all three generators."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, np.random.rand(), torch.rand(()).item(), __import__("random").random()


def draws(processes, infinite, monkeypatch, count=None, epoch=0):
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(sampling, "get_dist_info", lambda rank=rank: (rank, processes))
        sampler = PlacedSampler(Noise(), seed=1, infinite=infinite)
        sampler.set_epoch(epoch)
        part = list(islice(sampler, count))
        assert infinite or len(part) == len(sampler)
        parts.append(part)
    return parts


def test_epochs_are_shuffled_shared_and_filled_up(monkeypatch):
    (one,) = draws(1, False, monkeypatch)
    assert sorted(one) == list(range(10)) != one and [draw.place for draw in one] == list(range(10))
    (two,) = draws(1, False, monkeypatch, epoch=1)
    assert sorted(two) == sorted(one) and two != one and two[0].place == 10
    parts = draws(3, False, monkeypatch)
    together = [draw for row in zip(*parts, strict=True) for draw in row]
    assert together == [*one, *one[:2]] and [draw.place for draw in together] == list(range(12))


def test_endless_draws_go_on_with_the_next_epoch(monkeypatch):
    (one,) = draws(1, True, monkeypatch, 25)
    assert sorted(one[:10]) == sorted(one[10:20]) == list(range(10)) and one[:10] != one[10:20]
    parts = draws(3, True, monkeypatch, 8)
    assert [draw for row in zip(*parts, strict=True) for draw in row] == one[:24]
    assert one[24].place == 24


def test_batches_start_in_the_middle_once():
    batches = ResumableBatches(PlacedSampler(Noise(), seed=1), batch_size=3)
    whole = list(batches)
    assert [len(batch) for batch in whole] == [3, 3, 3, 1] and len(batches) == 4
    batches.skip(2)
    unused = iter(batches)  # a loader with workers makes one more than it takes
    assert list(batches) == whole[2:] and list(batches) == whole
    del unused
    assert len(ResumableBatches(PlacedSampler(Noise(), seed=1), batch_size=3, drop_last=True)) == 3


def test_draws_reach_other_processes_with_their_place():
    draw = pickle.loads(pickle.dumps(Draw(7, 1207)))
    assert (draw, draw.place, type(draw)) == (7, 1207, Draw)


def test_augmentation_depends_on_the_place_only():
    data = SeededDataset({"type": "Noise"}, seed=3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again, later = data[Draw(2, 5)], data[Draw(2, 5)], data[Draw(2, 15)]
    assert first == again and first[0] == later[0] == 2
    assert all(one != other for one, other in zip(first[1:], later[1:], strict=True))
    assert np.array_equal(before[0], np.random.get_state()[1]) and torch.equal(before[1], torch.get_rng_state())

    sampler = PlacedSampler(Noise(), seed=3)
    batches = [
        list(DataLoader(data, batch_sampler=ResumableBatches(sampler, 4), num_workers=n, collate_fn=list))
        for n in (0, 2)
    ]
    assert batches[0] == batches[1]
