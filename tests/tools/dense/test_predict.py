"""Predictions on a person's own pictures: which files, what is drawn, what the JSON says."""

import json

import numpy as np
import pytest
from PIL import Image

from saccade.tools.dense.drawing import colour_of, draw, record
from saccade.tools.dense.prediction import Found, Prediction, read_picture
from saccade.tools.dense.shapes_dataset import run_lengths

CLASSES = ["cat", "dog"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """One picture in every common format and mode, 40 x 30, with text files beside."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    photo = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    for name, mode in (("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.webp", "RGB"), ("d.gif", "P"), ("e.bmp", "L")):
        photo.convert(mode).save(folder / name)
    Image.fromarray(random.integers(0, 65536, (30, 40), dtype=np.uint16)).save(folder / "f.tif")
    photo.save(folder / "a.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_segmentor_writes_drawings_maps_and_json(saccade, tiny, pictures, tmp_path):
    assert saccade("train", "segmentation/quickstart", *tiny, "run.dir=run").code == 0
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    outcome = saccade("predict", "run", pictures, f"out={pictures}")
    assert outcome.code == 0 and outcome.err == ""
    assert f"7 pictures: {pictures}/*_predicted.png, and .json beside each" in outcome.out
    assert all(path.read_bytes() == content for path, content in before.items()), "the pictures are as they were"
    made = {path.name for path in pictures.iterdir()} - {path.name for path in before}
    names = ["a", "a_2", "b", "c", "d", "e", "f"]
    assert made == {name + end for name in names for end in ("_predicted.png", "_predicted.json", "_map.png")}
    content = json.loads((pictures / "f_predicted.json").read_text())
    assert (content["width"], content["height"], content["picture"]) == (40, 30, str(pictures / "f.tif"))
    labels = np.asarray(Image.open(pictures / content["map"]))
    assert labels.shape == (30, 40) and sum(content["shares"].values()) == pytest.approx(1, abs=1e-3)
    for number, name in enumerate(content["classes"]):
        assert content["shares"].get(name, 0) == pytest.approx((labels == number).mean(), abs=1e-4)
    again = saccade("predict", "segmentation/quickstart", "checkpoint=run", pictures, f"out={pictures}")
    assert again.code == 0 and "7 pictures" in again.out, "predictions are no pictures to predict on"


def test_detector_writes_boxes_and_masks(saccade, tiny, shapes, tmp_path):
    words = [*tiny, "run.evaluate_every=4", "+detector.changes.test_cfg.rcnn.score_thr=0"]
    assert saccade("train", "detection/quickstart", *words, "run.dir=run").code == 0
    files = sorted((shapes / "val2017").iterdir())[:2]
    outcome = saccade("predict", "run", *files, "score=0", "data.root=gone")
    assert outcome.code == 0 and outcome.err == "", outcome.err
    content = json.loads((tmp_path / "predictions" / f"{files[0].stem}_predicted.json").read_text())
    scores = [found["score"] for found in content["objects"]]
    assert scores and scores == sorted(scores, reverse=True)
    for found in content["objects"]:
        left, top, width, height = found["box"]
        assert found["class"] in ("circle", "square", "triangle", "star", "cross", "ring")
        assert min(left, top, width, height) >= 0 and max(left + width, top + height) <= 64.01
        assert found["mask"]["size"] == [64, 64] and sum(found["mask"]["counts"]) == 64 * 64
    assert saccade("predict", "run", *files, "score=1").code == 0
    content = json.loads((tmp_path / "predictions" / f"{files[0].stem}_predicted.json").read_text())
    assert content["objects"] == []


def test_drawing():
    picture = np.full((60, 80, 3), 128, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    cat = Found("cat", 0, 0.9, (30, 20, 50, 40), mask)
    image = np.asarray(draw(picture, Prediction([cat], None), CLASSES))
    zoom = image.shape[0] // 60
    assert zoom == 8 and image.shape == (480, 640, 3), "small pictures are enlarged"
    half = (128 + np.array(colour_of(0))) / 2
    assert np.abs(image[30 * zoom, 40 * zoom] - half).max() <= 1 and (image[55 * zoom, 5 * zoom] == 128).all()
    assert (image[30 * zoom, 30 * zoom] == colour_of(0)).all(), "the box's left side"

    semantic = np.zeros((60, 80), np.int64)
    semantic[:, 40:] = 1
    image = np.asarray(draw(picture, Prediction(None, semantic), CLASSES))
    for label, column in ((0, 30), (1, 70)):
        assert np.abs(image[50 * zoom, column * zoom] - (128 + np.array(colour_of(label))) / 2).max() <= 1
    large = np.zeros((700, 900, 3), np.uint8)
    assert draw(large, Prediction([], None), CLASSES).size == (900, 700)
    content = record(Prediction([cat], semantic), CLASSES)
    assert content["shares"] == {"cat": 0.5, "dog": 0.5}
    (found,) = content["objects"]
    assert (found["class"], found["score"], found["box"]) == ("cat", 0.9, [30, 20, 20, 20])
    assert found["mask"] == {"size": [60, 80], "counts": run_lengths(mask)}


def test_pictures_are_read_the_right_way_up(tmp_path):
    photo = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").shape == (6, 4, 3)
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("detection/quickstart",), "needs pictures"),
        (("detection/quickstart", "nowhere.jpg"), "no such picture, folder, recipe or run: nowhere.jpg"),
        (("detection/quickstart", "PICTURES"), "no run of detection/quickstart under run.root=runs: train it, or pass"),
        (("PICTURES", "checkpoint=nowhere"), "checkpoint=nowhere: no such run directory or file"),
        (("detection/quickstart", "PICTURES", "score=2"), "score=2.0 is not valid: it must be between 0 and 1"),
        (("detection/quickstart", "PICTURES", "score=high"), "score=high is not valid"),
        (("model.pretrained=true", "PICTURES"), "nat_nano here is a classifier"),
    ],
)
def test_bad_words(saccade, pictures, words, told):
    outcome = saccade("predict", *(pictures if word == "PICTURES" else word for word in words))
    assert outcome.code == 1 and told in outcome.err and outcome.err.count("\n") == 1


def test_what_is_no_picture_is_named_at_the_end(saccade, tiny, pictures, tmp_path):
    assert saccade("train", "segmentation/quickstart", *tiny, "run.dir=run", "schedule.iterations=2").code == 0
    outcome = saccade("predict", "run", pictures / "notes.txt", pictures / "a.jpg")
    assert outcome.code == 1 and "1 of 2 pictures could not be read: " in outcome.err and "notes.txt" in outcome.err
    assert (tmp_path / "predictions" / "a_predicted.png").exists()
