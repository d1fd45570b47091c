"""A small image folder, and the command run in this process."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.tools.__main__ import main

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """48 training and 15 evaluation images of noise in three tints."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 5)):
        for channel, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = noise.integers(0, 160, (24, 30, 3), dtype=np.uint8)
                pixels[..., 2 - channel] += 60
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def small(image_folder) -> list[str]:
    """Overrides of the quickstart recipe that make a run of two epochs of six updates on the image folder."""
    return [
        "data=folder",
        f"data.root={image_folder}",
        "data.workers=0",
        "data.input_size=[3,32,32]",
        "batch_size=8",
        "schedule.epochs=2",
        "schedule.warmup_epochs=0",
        "optimizer.ema_decay=null",
        "runtime.threads=1",
    ]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def saccade(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty directory of this process; the generators and threads are put back after."""
    monkeypatch.chdir(tmp_path)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()

    def run(*words: str) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    yield run
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_num_threads(states[3])
    torch.use_deterministic_algorithms(False)
