"""Every NAT-family golden, reached the way a user reaches official weights: a file given to timm.create_model."""

import pytest
import torch

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_logits, assert_map, load_file, watch

NAMES = sorted(path.stem for path in (GOLDENS / "nat").glob("*.json"))
CLASSIFIERS = [name for name in NAMES if not name.startswith("downstream_")]
DENSE = [name for name in NAMES if name.startswith("downstream_")]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, tmp_path):
    golden = load_golden("nat", name)
    model = load_file(golden["model"], tmp_path / "official.pth", official_state(golden))
    steps = [model.steps[index] for index in model.feature_indices]
    maps = watch(model.stem, *steps)
    with torch.no_grad():
        logits = model(golden_image(*golden["input"]))[0]
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert_map(maps[model.stem], golden["stem"], "stem", correction=1)
    for index, (step, reference) in enumerate(zip(steps, golden["stages"], strict=True)):
        assert_map(maps[step], reference, f"stage {index}", correction=1)
    assert_logits(logits, golden)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if "rpb_x16" in load_golden("nat", name)])
def test_enlarged_position_bias(name, tmp_path):
    golden = load_golden("nat", name)
    state = {key: value * 16 if key.endswith(".rpb") else value for key, value in official_state(golden).items()}
    model = load_file(golden["model"], tmp_path / "official.pth", state)
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden["rpb_x16"])


@pytest.mark.parametrize("name", DENSE)
def test_detection_and_segmentation_backbone(name, tmp_path):
    golden = load_golden("nat", name)
    # Downstream checkpoints hold the backbone beside the parts of the detector.
    state = {f"backbone.{key}": value for key, value in official_state(golden).items()}
    state["rpn_head.rpn_cls.weight"] = torch.zeros(3, 256, 1, 1)
    options = {"dilations": golden["dilations"]} if golden["dilations"] else {}
    checkpoint = {"meta": {}, "state_dict": state}
    model = load_file(golden["model"], tmp_path / "d.pth", checkpoint, features_only=True, out_norms=True, **options)
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["outputs"], strict=True)):
        assert_map(value, reference, f"map {index}", correction=1)
