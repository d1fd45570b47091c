"""Every FocalNet golden, and the ways official and downstream checkpoints come."""

from functools import partial

import pytest
import timm
import torch

from saccade.models.focalnet_checkpoint import checkpoint_filter_fn

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_logits, assert_map, build_around, load_file, watch

NAMES = sorted(path.stem for path in (GOLDENS / "focalnet").glob("*.json"))
DENSE = [name for name in NAMES if "options" in load_golden("focalnet", name)]
CLASSIFIERS = [name for name in NAMES if name not in DENSE]
# Eight values at one pixel; the official ones, in float32, lie up to 2.4e-5 from what float64 gives (xlarge_fl3).
PROBE_TOLERANCE = 5e-5
PARAMETERS = {
    "focalnet_tiny_srf_fused": 28_427_116,
    "focalnet_tiny_lrf_fused": 28_647_928,
    "focalnet_small_srf_fused": 49_891_216,
    "focalnet_small_lrf_fused": 50_342_440,
    "focalnet_base_srf_fused": 88_148_144,
    "focalnet_base_lrf_fused": 88_749_768,
    "focalnet_tiny_iso": 5_880_280,
    "focalnet_small_iso": 22_376_344,
    "focalnet_base_iso": 87_237_400,
    "focalnet_large_fl3_fused": 239_134_898,
    "focalnet_large_fl4_fused": 239_315_402,
    "focalnet_xlarge_fl3_fused": 408_787_378,
    "focalnet_xlarge_fl4_fused": 409_028_042,
    "focalnet_huge_fl3_fused": 745_276_338,
    "focalnet_huge_fl4_fused": 747_989_578,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, tmp_path):
    golden = load_golden("focalnet", name)
    state, name = official_state(golden), golden["model"]
    adapted = partial(checkpoint_filter_fn, state)
    # The large ones would spend most of their time in files and initialisation.
    small = golden["params"] < 100e6
    model = load_file(name, tmp_path / "official.pth", {"model": state}) if small else build_around(name, adapted)
    models = [(model, golden)]
    if "normalized" in golden:
        models.append((build_around(name, adapted, normalize_modulator=True), golden["normalized"]))
    for model, numbers in models:
        assert sum(p.numel() for p in model.parameters()) == golden["params"]
        # The one stage of an isotropic model ends with its last block.
        steps = list(model.steps)[-len(numbers["stages"]) :]
        maps = watch(model.norm, *steps)
        with torch.no_grad():
            logits = model(golden_image(*golden["input"]))[0]
        for index, (step, reference) in enumerate(zip(steps, numbers["stages"], strict=True)):
            assert_map(maps[step], reference, f"stage {index}", probe_tolerance=PROBE_TOLERANCE)
        assert_map(maps[model.norm], numbers["final_norm"], "final norm", probe_tolerance=PROBE_TOLERANCE)
        assert_logits(logits, numbers)


@pytest.mark.parametrize("name", DENSE)
def test_detection_and_segmentation_backbone(name, tmp_path):
    golden = load_golden("focalnet", name)
    # Downstream checkpoints hold the backbone beside the parts of the detector.
    state = {f"backbone.{key}": value for key, value in official_state(golden).items()}
    state["rpn_head.rpn_cls.weight"] = torch.zeros(3, 256, 1, 1)
    options = {"features_only": True, "out_norms": True, **golden["options"]}
    model = load_file(golden["model"], tmp_path / "detector.pth", {"meta": {}, "state_dict": state}, **options)
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["stages"], strict=True)):
        assert_map(value, reference, f"map {index}", probe_tolerance=PROBE_TOLERANCE)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
