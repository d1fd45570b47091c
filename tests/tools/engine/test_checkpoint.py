"""Checkpoints exist complete or not at all."""

import os

import pytest
import torch

from saccade.tools.engine import atomic, checkpoint
from saccade.tools.engine.atomic import new_directory, new_file, point
from saccade.tools.engine.checkpoint import BEST, LAST, CheckpointStore


def save(store: CheckpointStore, name: str, best: bool = False, average: bool = False):
    state = {"weight": torch.arange(6.0).view(2, 3).t(), "bias": torch.ones(1)}
    training = {"step": 3, "nested": {"momentum": [torch.ones(2)]}}
    return store.save(name, state, state if average else None, training, {"epoch": 1}, best)


def names(store: CheckpointStore) -> set[str]:
    return {path.name for path in store.directory.iterdir()}


def test_only_what_is_named_stays(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.find(LAST) is None
    save(store, "a", best=True)
    assert names(store) == {"a", LAST, BEST}
    save(store, "b")
    save(store, "c")
    assert names(store) == {"a", "c", LAST, BEST}
    assert store.find(LAST).path.name == "c" and store.find(BEST).path.name == "a"
    save(store, "d", best=True, average=True)
    assert names(store) == {"d", LAST, BEST}
    found = store.find(BEST)
    assert found.best_weights.name == "ema.safetensors" and found.summary() == {"epoch": 1}
    assert found.training_state()["nested"]["momentum"][0].tolist() == [1, 1]


@pytest.mark.parametrize("step", ["save_file", "torch.save", "write_text", "rename", "point", "replace link"])
def test_a_crash_at_any_step_leaves_the_last_one(tmp_path, monkeypatch, step):
    store = CheckpointStore(tmp_path)
    save(store, "a", best=True)

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "torch.save":
            patch.setattr(torch, "save", crash)
        elif step == "rename":
            patch.setattr(atomic.os, "rename", crash)
        elif step == "replace link":
            real = os.replace
            patch.setattr(atomic.os, "replace", lambda a, b: crash() if b.name == LAST else real(a, b))
        else:
            patch.setattr(checkpoint, step, crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, "b", best=True)
    assert store.find(LAST).path.name == store.find(BEST).path.name == "a"
    assert store.find(LAST).training_state()["step"] == 3
    save(store, "b")
    assert names(store) == {"a", "b", LAST, BEST}


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, "a", best=True)
    (store.directory / ".partial-1234-b").mkdir()
    (store.directory / ".partial-1234-b" / "model.safetensors").write_bytes(b"half")
    os.symlink("a", store.directory / ".partial-1234-last")
    save(store, "b", best=True)
    assert names(store) == {"b", LAST, BEST}


def test_files_appear_whole(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ValueError), new_file(target) as partial:
        partial.write_text("ne")
        assert target.read_text() == "old"
        raise ValueError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with new_file(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]
    with new_directory(tmp_path / "folder") as partial:
        (partial / "inside").write_text("x")
        assert not (tmp_path / "folder").exists()
    point(tmp_path / "link", "folder")
    point(tmp_path / "link", "file")
    assert (tmp_path / "link").read_text() == "new"
