"""The digits' fixed split and the folder layout."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from saccade.tools.engine.datasets import Digits, Folder
from saccade.tools.errors import UserError


def test_digits_split_is_stratified_and_fixed():
    training, held_out = Digits(True, 0.2), Digits(False, 0.2)
    assert (len(training), len(held_out)) == (1437, 360)
    original = load_digits()
    parts = train_test_split(np.arange(1797), test_size=0.2, stratify=original.target, random_state=0)
    for images, indices in zip((training, held_out), parts, strict=True):
        assert images.labels == original.target[indices].tolist()
        small = [np.asarray(picture.resize((8, 8), Image.Resampling.BOX))[..., 0] for picture in images.pictures]
        expected = original.images[indices] * (255 / 16)
        assert np.abs(np.stack(small) - expected).mean((1, 2)).max() < 25  # enlarging changed little
        assert images.read(3)[0] is images.pictures[3] and images.read(3)[1] == images.labels[3]
    for digit in range(10):
        share = held_out.labels.count(digit) / (held_out.labels.count(digit) + training.labels.count(digit))
        assert abs(share - 0.2) < 0.01
    assert held_out.labels[:12] == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


def test_folder_reads_in_order(tmp_path):
    for name, files in (("b", ["2.png", "1.JPG"]), ("a", ["deep/x.png"]), (".hidden", ["0.png"])):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 9).save(tmp_path / name / file)
    (tmp_path / "b" / "notes.txt").write_text("not a picture")
    folder = Folder(tmp_path)
    assert folder.classes == ["a", "b"] and len(folder) == 3
    assert folder.labels.tolist() == [0, 1, 1]
    assert [name.decode() for name in folder.files] == ["a/deep/x.png", "b/1.JPG", "b/2.png"]
    picture, label = folder.read(0)
    assert picture.mode == "RGB" and label == 0 and isinstance(label, int)


def test_picture_that_shrank_on_disk(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "x.png")
    folder = Folder(tmp_path)
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the image .*a/x\.png") as found:
        folder.read(0)
    assert found.value.local
