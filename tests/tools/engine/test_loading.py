"""Batches: bytes from workers, random choices by position, normalisation."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from saccade.tools.engine.augmentation import BatchAugmentation, evaluation_transform, posterize, training_transform
from saccade.tools.engine.distributed import Processes
from saccade.tools.engine.loading import Loader, Samples
from saccade.tools.engine.sampling import EvaluationBatches, TrainingBatches, plan_batch
from saccade.tools.engine.seeding import generator_states, generators_kept, restore_generators
from saccade.tools.engine.settings import Augment
from saccade.tools.errors import UserError

CPU = Processes(0, 1, torch.device("cpu"))
CONFIG = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
STRONG = Augment(
    scale=[0.3, 1.0],
    ratio=[0.75, 1.333],
    hflip=0.5,
    vflip=0.0,
    color_jitter=0.4,
    auto_augment="rand-m9-mstd0.5-inc1",
    interpolation="random",
    erase_prob=0.5,
    erase_mode="pixel",
    erase_count=1,
    mixup=0.8,
    cutmix=1.0,
    mix_prob=1.0,
    mix_switch_prob=0.5,
    mix_mode="batch",
    label_smoothing=0.1,
)


class Pictures:
    """Twelve pictures of noise."""

    classes = ("a", "b", "c")

    def __len__(self) -> int:
        return 12

    def read(self, index):
        noise = np.random.default_rng(index).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        return Image.fromarray(noise), index % 3


def training_batches(workers: int = 0, epoch: int = 0, update: int = 0, seed: int = 7) -> list[torch.Tensor]:
    batches = TrainingBatches(12, plan_batch(4, 1, None), 0, seed)
    augmentation = BatchAugmentation(STRONG, 3, seed, 4, 0, CPU.device)
    samples = Samples(Pictures(), training_transform(STRONG, CONFIG), seed)
    loader = Loader(samples, batches, CONFIG, CPU.device, workers, augmentation)
    batches.start(epoch, update)
    return [torch.cat([images.flatten(), targets.flatten()]) for images, targets in loader]


def test_pictures_depend_on_position_alone():
    expected = training_batches()
    torch.rand(5), random.random(), np.random.rand()
    for repeat in (training_batches(), training_batches(workers=1), training_batches(workers=2)):
        assert all(map(torch.equal, expected, repeat))
    assert all(map(torch.equal, expected[1:], training_batches(update=1)))
    for other in (training_batches(epoch=1), training_batches(seed=8)):
        assert not any(map(torch.equal, expected, other))


def test_loading_leaves_the_generators_alone():
    before = generator_states(CPU.device)
    training_batches()
    after = generator_states(CPU.device)
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"] and before["numpy"] == after["numpy"]


def test_generators_are_restored():
    states = generator_states(CPU.device)
    drawn = torch.rand(3), random.random(), np.random.rand(), random.gauss(0, 1), np.random.randn()
    restore_generators(states, CPU.device)
    again = torch.rand(3), random.random(), np.random.rand(), random.gauss(0, 1), np.random.randn()
    assert torch.equal(drawn[0], again[0]) and drawn[1:] == again[1:]
    with generators_kept():
        torch.rand(1)
    restored = generator_states(CPU.device)
    restore_generators(restored, CPU.device)
    first = torch.rand(1)
    restore_generators(restored, CPU.device)
    with generators_kept(CPU.device):
        torch.rand(9), random.random(), np.random.rand()
    assert torch.equal(first, torch.rand(1))


def test_evaluation_images_are_timm_s():
    samples = Samples(Pictures(), evaluation_transform(CONFIG), seed=None)
    loader = Loader(samples, EvaluationBatches(12, 5, 0, 1), CONFIG, CPU.device, workers=0)
    images = torch.cat([images for images, _ in loader])
    transform = create_transform(**CONFIG)
    expected = torch.stack([transform(Pictures().read(index)[0]) for index in range(12)])
    torch.testing.assert_close(images, expected, atol=2e-6, rtol=0)
    assert torch.cat([targets for _, targets in loader]).tolist() == [index % 3 for index in range(12)]


def test_strongest_augmentation_is_possible():
    """Posterize down to no bits at all, which Pillow 13 refuses."""
    strongest = replace(STRONG, auto_augment="rand-m10-p1-n9-inc1")
    samples = Samples(Pictures(), training_transform(strongest, CONFIG), seed=0)
    pictures = torch.stack([image for image, _ in samples.__getitems__([(epoch, 0) for epoch in range(40)])])
    assert pictures.dtype == torch.uint8 and pictures.shape[1:] == (3, 16, 16)
    assert posterize(Pictures().read(0)[0], 0).getextrema() == ((0, 0),) * 3
    assert posterize(Pictures().read(0)[0], 1).getextrema() == ((0, 128),) * 3


def test_mixed_targets_are_distributions():
    loader_targets = training_batches()[0][-4 * 3 :].view(4, 3)
    torch.testing.assert_close(loader_targets.sum(1), torch.ones(4))
    assert loader_targets.max() < 1


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_arrives_as_it_was(workers):
    class Broken(Pictures):
        def read(self, index):
            raise UserError(f"picture {index} is broken", local=True)

    samples = Samples(Broken(), evaluation_transform(CONFIG), seed=None)
    loader = Loader(samples, EvaluationBatches(12, 5, 0, 1), CONFIG, CPU.device, workers)
    with pytest.raises(UserError, match=r"^picture 0 is broken$"):
        list(loader)
