"""Every LITv2 golden, reached the way a user reaches official weights: a file given to timm.create_model."""

import sys
from types import ModuleType

import pytest
import timm
import torch

from saccade.models.litv2 import default_cfgs, published_top1

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_logits, assert_map, load_file, watch

NAMES = sorted(path.stem for path in (GOLDENS / "litv2").glob("*.json"))
DENSE = [name for name in NAMES if "_det_" in name or "_seg_" in name]
CLASSIFIERS = [name for name in NAMES if name not in DENSE]
# Parameters and low-frequency heads of the third stage, as the repository has them.
VARIANTS = {
    "litv2_small": (27_844_000, 10),
    "litv2_medium": (48_830_368, 10),
    "litv2_base": (86_520_704, 14),
    "litv2_base_384": (86_520_704, 14),
    "litv2_small_alpha00": (28_089_760, 0),
    "litv2_small_alpha02": (27_844_000, 2),
    "litv2_small_alpha04": (27_696_544, 4),
    "litv2_small_alpha05": (27_647_392, 6),
    "litv2_small_alpha07": (27_696_544, 8),
    "litv2_small_alpha10": (28_089_760, 12),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, tmp_path):
    golden = load_golden("litv2", name)
    model = load_file(golden["model"], tmp_path / "official.pth", {"model": official_state(golden)})
    maps = watch(*model.stages, model.norm)
    with torch.no_grad():
        logits = model(golden_image(*golden["input"]))[0]
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    for index, (stage, reference) in enumerate(zip(model.stages, golden["stages"], strict=True)):
        assert_map(maps[stage], reference, f"stage {index}")
    assert_map(maps[model.norm], golden["final_norm"], "final norm")
    assert_logits(logits, golden)


@pytest.mark.parametrize("name", DENSE)
def test_detection_and_segmentation_backbone(name, tmp_path):
    golden = load_golden("litv2", name)
    # Downstream checkpoints hold the backbone beside the parts of the detector.
    state = {f"backbone.{key}": value for key, value in official_state(golden).items()}
    state["rpn_head.rpn_cls.weight"] = torch.zeros(3, 256, 1, 1)
    checkpoint = {"meta": {}, "state_dict": state}
    options = {"windows": golden["windows"], "out_norms": (1, 2, 3) if "_det_" in name else True}
    model = load_file(golden["model"], tmp_path / "d.pth", checkpoint, features_only=True, **options)
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["stages"], strict=True)):
        assert_map(value, reference, f"map {index}")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    parameters, low_heads = VARIANTS[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    mixers = [[block.mixer for block in stage.blocks] for stage in model.stages]
    assert mixers[0] == mixers[1] == [None, None]
    assert {(mixer.window, mixer.low_heads) for mixer in mixers[2]} == {(2, low_heads)}
    assert {(mixer.window, mixer.high_heads) for mixer in mixers[3]} == {(1, 0)}


def test_every_official_file_has_a_name():
    files = {cfg.url.rsplit("/", 1)[-1] for tags in default_cfgs.values() for cfg in tags.cfgs.values() if cfg.url}
    assert files == {f"litv2_{name}.pth" for name in ("s", "m", "b", "b_384")} | {
        f"alpha_{alpha}.pth" for alpha in ("0", "0.2", "0.4", "0.5", "0.7", "0.9", "1")
    }
    tags = {f"{name}.{tag}" for name, tags in default_cfgs.items() for tag in tags.cfgs}
    assert published_top1.keys() == tags - {"litv2_nano.untrained"}


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("litv2_nano").parameters()) < 1_000_000


def official_nano():
    """Return a LITv2-Nano and its state dict under official names."""
    model = timm.create_model("litv2_nano", num_classes=10).eval()
    state = {}
    for key, value in model.state_dict().items():
        stage = key.split(".")[1]
        key = key.replace("stem.conv", "patch_embed.proj").replace("stem.", "patch_embed.")
        if "downsample" in key:
            key = key.replace(f"stages.{stage}", f"layers.{int(stage) - 1}").replace(
                "downsample.norm", "downsample.norm_layer"
            )
            key = key.replace("downsample.conv", "downsample.dconv").replace(
                "downsample.offset", "downsample.dconv.conv_offset"
            )
        key = key.replace("stages.", "layers.").replace("mixer", "attn").replace("dwconv", "dwconv.dwconv")
        state[key.replace("head.fc", "head")] = value
    return model, state


def test_checkpoint_with_a_pickled_yacs_configuration(tmp_path, monkeypatch):
    """What the official trainer saves is read though yacs is not there."""
    model, state = official_nano()
    yacs = ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    config = yacs.CfgNode(MODEL=yacs.CfgNode(NAME="litv2"))
    config.__dict__["__immutable__"] = True
    checkpoint = {"model": state, "optimizer": {"state": {}}, "epoch": 299, "max_accuracy": 81.9, "config": config}
    torch.save(checkpoint, tmp_path / "trained.pth")
    monkeypatch.undo()
    overlay = {"file": str(tmp_path / "trained.pth"), "num_classes": 10}
    loaded = timm.create_model("litv2_nano", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10).eval()
    x = golden_image(64, 2)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}]
)
def test_other_wrappers(wrap, tmp_path):
    model, state = official_nano()
    torch.nn.init.normal_(state["layers.1.downsample.dconv.conv_offset.weight"])
    overlay = {"num_classes": 10}
    path = tmp_path / "w.pth"
    torch.save(wrap(state), path)
    overlay = {"file": str(path), "num_classes": 10}
    loaded = timm.create_model("litv2_nano", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10).eval()
    x = golden_image((50, 70), 1)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_window_of_a_stage_may_change_after_training(tmp_path):
    """No parameter depends on the window, so released weights serve windows of 4."""
    model, state = official_nano()
    torch.save(state, tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth"), "num_classes": 10}
    wider = timm.create_model(
        "litv2_nano", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, windows=(0, 0, 4, 1)
    ).eval()
    x = golden_image(64, 1)
    with torch.no_grad():
        assert not torch.allclose(wider(x), model(x))


def test_images_of_any_size_agree_with_a_batch():
    model = timm.create_model("litv2_nano").eval()
    for size in ((33, 47), (96, 1), (1, 1), (130, 61)):
        x = golden_image(size, 3)
        with torch.no_grad():
            torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": (2, 1)}, r"windows=\(2, 1\) must be one for each stage of depths=\(2, 2, 4, 2\)"),
        ({"num_heads": (2,)}, r"num_heads=\(2,\) must be one for each stage"),
        ({"out_norms": (1, 4)}, r"out_norms=\(1, 4\) must be a bool, or stages among \(0, 1, 2, 3\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("litv2_nano", **arguments)
