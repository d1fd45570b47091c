"""Every golden of FLatten, Agent and InLine, reached the way a user reaches official weights: a file for timm."""

import pytest
import torch

from saccade.models.checkpoint import rename

from ..fill import GOLDENS, golden_image, load_golden, official_state, stressed_state
from ..parity import assert_close, assert_logits, load_file

NAMES = sorted(
    (path.parent.name, path.stem)
    for path in GOLDENS.glob("*/*.json")
    if path.parent.name in ("agent", "flatten", "inline")
)
CLASSIFIERS = [(family, name) for family, name in NAMES if not name.startswith("downstream_")]


def tapped(model, name):
    """Return the module whose output an official module's is."""
    (key,) = rename({f"{name}.": torch.empty(0)}, model.official_names)
    return model.get_submodule(key.rstrip("."))


@pytest.mark.parametrize(("family", "name"), CLASSIFIERS)
def test_classifier(family, name, tmp_path):
    golden = load_golden(family, name)
    # There each block's output is known by its norm.
    model = load_file(golden["model"], tmp_path / "official.pth", {"model": official_state(golden), "epoch": 299})
    norms = {}
    for tap, *_ in golden["taps"]:
        tapped(model, tap).register_forward_hook(
            lambda _, __, out, tap=tap: norms.__setitem__(tap, out.double().norm())
        )
    with torch.no_grad():
        logits = model(golden_image(*golden["input"]))[0]
    for tap, _, reference in golden["taps"]:
        assert_close(norms[tap], reference, f"norm of {tap}")
    assert_logits(logits, golden)
    model = load_file(golden["model"], tmp_path / "stressed.pth", {"model": stressed_state(golden), "epoch": 299})
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden["stress"])


@pytest.mark.parametrize(
    ("name", "norms"), [("downstream_agent_pvt_t", {}), ("downstream_agent_swin_t", {"out_norms": True})]
)
def test_dense(name, norms, tmp_path):
    """The official detector's backbone, which has more agents than the classifier and an image that is not square."""
    golden = load_golden("agent", name)
    state = {f"backbone.{key}": value for key, value in official_state(golden).items()}
    checkpoint = {"meta": {}, "state_dict": {**state, "rpn_head.rpn_cls.weight": torch.zeros(3, 256, 1, 1)}}
    options = {"features_only": True, "agent_grids": golden["agent_shapes"], **norms}
    model = load_file(golden["model"], tmp_path / "detector.pth", checkpoint, **options)
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["features"], strict=True)):
        assert list(value.shape) == reference["shape"]
        assert_close(value.flatten()[:64], reference["first"], f"map {index}")
        assert_close(value.norm(), reference["norm"], f"norm of map {index}")
