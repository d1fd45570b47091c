"""Every NAT-family golden, reached the way a user reaches official weights: a file given to timm.create_model."""

import pytest
import timm
import torch

import saccade  # noqa: F401  (registers the models)

from ..fill import GOLDENS, golden_image, load_golden, official_state, relative_error

TOLERANCE = 1e-5
NAMES = sorted(path.stem for path in (GOLDENS / "nat").glob("*.json"))
CLASSIFIERS = [name for name in NAMES if not name.startswith("downstream_")]
DENSE = [name for name in NAMES if name.startswith("downstream_")]


def load(golden, path, state, **kwargs):
    """Save an official state dict and build our model from the file."""
    torch.save(state, path)
    overlay = {"file": str(path)}
    return timm.create_model(golden["model"], pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def assert_close(value, reference, what):
    error = relative_error(value, reference)
    assert error <= TOLERANCE, f"{what} is off by {error:.2e}"


def assert_map(value, reference, what):
    """Compare an NCHW map with the recorded shape, statistics and probes."""
    assert list(value.shape) == reference["shape"]
    assert abs(value.mean().item() - reference["mean"]) <= TOLERANCE * reference["std"], what
    value = value.double()
    assert_close(value.std(), reference["std"], f"std of {what}")
    centre = value[0, :8, value.shape[2] // 2, value.shape[3] // 2]
    assert_close(centre, reference["probe"], f"centre of {what}")
    if "corner_probe" in reference:
        assert_close(value[0, :8, -1, -1], reference["corner_probe"], f"corner of {what}")
    if "norm" in reference:
        assert_close(value.norm(), reference["norm"], f"norm of {what}")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, tmp_path):
    golden = load_golden("nat", name)
    state = official_state(golden)
    model = load(golden, tmp_path / "official.pth", state)
    image = golden_image(*golden["input"])
    maps = {}
    steps = [model.steps[index] for index in model.feature_indices]
    for module in (model.stem, *steps):
        module.register_forward_hook(lambda m, _, out: maps.__setitem__(m, out.permute(0, 3, 1, 2)))
    with torch.no_grad():
        logits = model(image)[0]
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    assert_map(maps[model.stem], golden["stem"], "stem")
    for index, (step, reference) in enumerate(zip(steps, golden["stages"], strict=True)):
        assert_map(maps[step], reference, f"stage {index}")
    assert_close(logits[:64], golden["logits"], "logits")
    assert_close(logits.norm(), golden["logits_norm"], "logits' norm")


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if "rpb_x16" in load_golden("nat", name)])
def test_enlarged_position_bias(name, tmp_path):
    golden = load_golden("nat", name)
    state = {key: value * 16 if key.endswith(".rpb") else value for key, value in official_state(golden).items()}
    model = load(golden, tmp_path / "official.pth", state)
    with torch.no_grad():
        logits = model(golden_image(*golden["input"]))[0]
    assert_close(logits[:64], golden["rpb_x16"]["logits"], "logits")
    assert_close(logits.norm(), golden["rpb_x16"]["logits_norm"], "logits' norm")


@pytest.mark.parametrize("name", DENSE)
def test_detection_and_segmentation_backbone(name, tmp_path):
    golden = load_golden("nat", name)
    # Downstream checkpoints hold the backbone beside the parts of the detector.
    state = {f"backbone.{key}": value for key, value in official_state(golden).items()}
    state["rpn_head.rpn_cls.weight"] = torch.zeros(3, 256, 1, 1)
    options = {"dilations": golden["dilations"]} if golden["dilations"] else {}
    model = load(
        golden, tmp_path / "d.pth", {"meta": {}, "state_dict": state}, features_only=True, out_norms=True, **options
    )
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["outputs"], strict=True)):
        assert_map(value, reference, f"map {index}")
