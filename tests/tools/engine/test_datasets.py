"""The digits' fixed split and the folder layout."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from saccade.tools.engine.datasets import Digits, Folder
from saccade.tools.errors import UserError


def test_digits_split_is_stratified_and_fixed():
    training, held_out = Digits(True, 0.2), Digits(False, 0.2)
    assert (len(training), len(held_out)) == (1437, 360)
    everything = [training.read(i) for i in range(1437)] + [held_out.read(i) for i in range(360)]
    original = load_digits()
    expected = sorted((p.astype(int).tolist(), int(t)) for p, t in zip(original.images, original.target, strict=True))
    grey = [
        (np.round(np.asarray(picture)[..., 0] / 255 * 16).astype(int).tolist(), label) for picture, label in everything
    ]
    assert sorted(grey) == expected
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
