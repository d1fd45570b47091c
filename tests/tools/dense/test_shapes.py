"""The data set of shapes: what its files say, read with COCO's own reader and pixel by pixel, and whom it spares."""

import json

import numpy as np
import pytest
from PIL import Image

from saccade.tools.dense.shapes import CLASSES, OTHER, SHAPES, draw_scene, outline
from saccade.tools.dense.shapes_dataset import run_lengths

SMALL = ("train=6", "val=4", "size=64", "seed=3")


@pytest.fixture
def root(saccade, tmp_path):
    outcome = saccade("data", "shapes", "root=shapes", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "6 training and 4 held-out pictures of 64x64 in shapes" in outcome.out
    return tmp_path / "shapes"


def decode(segmentation):
    height, width = segmentation["size"]
    flat = np.repeat(np.arange(len(segmentation["counts"])) % 2, segmentation["counts"])
    return flat.reshape(width, height).T.astype(bool)


def test_scenes_are_what_they_say():
    for index in range(40):
        scene = draw_scene(np.random.default_rng(index), 96)
        masks = np.stack([instance.mask for instance in scene.instances])
        assert masks.any((1, 2)).all() and masks.sum(0).max() == 1, "seen, and each pixel by one shape only"
        for instance in scene.instances:
            expected = instance.label if instance.clear else OTHER
            assert (scene.semantic[instance.mask] == expected).all()
        assert (scene.semantic[~masks.any(0)] >= len(SHAPES)).all(), "the rest is ground"
        assert scene.semantic.max() < len(CLASSES)
    clear = [i.clear for n in range(40) for i in draw_scene(np.random.default_rng(n), 96).instances]
    assert 0 < clear.count(False) < len(clear) / 4, "some are hidden, most are not"


def test_same_seed_same_pictures():
    one, two, other = (draw_scene(np.random.default_rng(seed), 48) for seed in (5, 5, 6))
    assert np.array_equal(one.image, two.image) and np.array_equal(one.semantic, two.semantic)
    assert not np.array_equal(one.image, other.image)


def test_outlines():
    for shape in SHAPES:
        loops = outline(shape)
        assert len(loops) == (2 if shape == "ring" else 1)
        corners = np.array(loops[0])
        assert 0.9 < np.hypot(*corners.T).max() < 1.05 and np.abs(corners.mean(0)).max() < 1e-6, shape
    inner, outer = (np.hypot(*np.array(loop).T) for loop in outline("ring")[::-1])
    assert inner.max() < outer.min()


def test_run_lengths():
    mask = np.array([[1, 0, 0], [1, 0, 1]], bool)
    assert run_lengths(mask) == [0, 2, 3, 1]
    assert run_lengths(~mask) == [2, 3, 1]
    assert run_lengths(np.ones((2, 2), bool)) == [0, 4] and run_lengths(np.zeros((2, 2), bool)) == [4]


def test_coco_and_ade_agree(root):
    record = json.loads((root / "annotations/instances_val2017.json").read_text())
    assert [category["name"] for category in record["categories"]] == list(SHAPES)
    assert [image["file_name"] for image in record["images"]] == sorted(p.name for p in (root / "val2017").iterdir())
    assert len({annotation["id"] for annotation in record["annotations"]}) == len(record["annotations"])
    maps = sorted((root / "annotations/validation").iterdir())
    pictures = sorted((root / "images/validation").iterdir())
    assert [path.stem for path in maps] == [path.stem for path in pictures]
    for image, path, picture in zip(record["images"], maps, pictures, strict=True):
        assert picture.read_bytes() == (root / "val2017" / image["file_name"]).read_bytes()
        semantic = np.asarray(Image.open(path))
        assert semantic.dtype == np.uint8 and semantic.shape == (image["height"], image["width"])
        expected = np.zeros_like(semantic)
        for annotation in record["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = decode(annotation["segmentation"])
                expected[mask] = 0 if annotation["iscrowd"] else annotation["category_id"]
                x, y, width, height = annotation["bbox"]
                assert annotation["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
                assert (
                    mask[y].any() and mask[y + height - 1].any() and mask[:, x].any() and mask[:, x + width - 1].any()
                )
        shown = semantic <= len(SHAPES)
        assert np.array_equal(semantic[shown], expected[shown]) and (expected[~shown] == 0).all()
    names = [line.split("\t")[1] for line in (root / "objectInfo150.txt").read_text().splitlines()[1:]]
    assert names == list(CLASSES)


def test_coco_reads_it(root, capsys):
    reader = pytest.importorskip("pycocotools.coco")
    coco = reader.COCO(str(root / "annotations/instances_train2017.json"))
    capsys.readouterr()
    assert len(coco.getImgIds()) == 6 and len(coco.getAnnIds()) > 6
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), decode(annotation["segmentation"]))


def test_made_again_it_is_the_same(saccade, root, tmp_path):
    assert saccade("data", "shapes", "root=again", *SMALL).code == 0
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert len(files) == 2 * 10 + 10 + 4
    assert all((root / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    train, val = (list((root / "images" / split).iterdir()) for split in ("training", "validation"))
    assert not {p.read_bytes() for p in train} & {p.read_bytes() for p in val}, "what is held out is not learnt"


def test_it_overwrites_nothing(saccade, root, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert "already" in saccade("data", "shapes", "root=shapes", *SMALL).out
    outcome = saccade("data", "shapes", "root=shapes", "train=7")
    assert outcome.code == 1 and "other settings" in outcome.err and "train: 6" in outcome.err
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    mine = tmp_path / "mine"
    mine.mkdir()
    assert saccade("data", "shapes", "root=mine", *SMALL).code == 0, "an empty folder may be used"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("other", "file"):
        outcome = saccade("data", "shapes", f"root={name}", *SMALL)
        assert outcome.code == 1 and "did not make" in outcome.err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "needs the name of a data set"),
        (("shape", "root=x"), "data set=shape is not valid"),
        (("shapes",), "root=FOLDER"),
        (("shapes", "root=x", "trian=3"), "did you mean train"),
        (("shapes", "root=x", "train=many"), "train=many is not valid: it must be a whole number"),
        (("shapes", "root=x", "train=0"), "train=0 is not valid: it must be at least 1"),
        (("shapes", "root=x", "size=8"), "size=8"),
        (("shapes", "x"), "unexpected 'x'"),
    ],
)
def test_bad_words(saccade, tmp_path, words, told):
    outcome = saccade("data", *words)
    assert outcome.code == 1 and told in outcome.err and outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
