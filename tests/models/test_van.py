"""VAN's goldens, and the ways its checkpoints come."""

import argparse
import math

import pytest
import timm
import torch
from torch import nn

from saccade.models.van_checkpoint import checkpoint_filter_fn

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_logits, assert_map, load_file, watch
from .plain_van import PlainVAN

NAMES = sorted(path.stem for path in (GOLDENS / "van").glob("*.json"))
CLASSIFIERS = [name for name in NAMES if "dense" not in name]
PARAMETERS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,
    "van_b3": 44_765_608,
    "van_b4": 60_283_176,
    "van_b5": 89_967_688,
    "van_b6": 199_829_416,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, tmp_path):
    golden = load_golden("van", name)
    model = load_file(golden["model"], tmp_path / "official.pth.tar", {"state_dict": official_state(golden)})
    blocks = [stage.blocks for stage in model.stages]
    maps = watch(*blocks, *model.stages)
    with torch.no_grad():
        logits = model(golden_image(*golden["input"]))[0]
    assert_logits(logits, golden)
    for index, reference in enumerate(golden["stages"]):
        assert_map(maps[model.stages[index]], reference, f"stage {index}")
        assert_map(maps[blocks[index]], golden["stages_prenorm"][index], f"blocks of stage {index}")


def test_segmentation_backbone(tmp_path):
    golden = load_golden("van", "van_b0_dense_224")
    state = {f"backbone.{key}": value for key, value in official_state(golden).items()}
    state["decode_head.conv_seg.weight"] = torch.zeros(150, 512, 1, 1)
    checkpoint = {"meta": {}, "state_dict": state}
    model = load_file("van_b0", tmp_path / "official.pth", checkpoint, features_only=True, norm_eps=1e-5)
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["stages"], strict=True)):
        assert_map(value, reference, f"map {index}")


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 97), (130, 64), (224, 40), (384, 384)])
def test_any_size(size):
    """The official module graph at sizes that no golden has."""
    torch.manual_seed(0)
    plain = PlainVAN((8, 16, 20, 24), (1, 2, 1, 1), (8, 8, 4, 4)).double().train()
    plain(torch.randn(4, 3, 64, 64).double())
    options = {"embed_dims": (8, 16, 20, 24), "depths": (1, 2, 1, 1), "mlp_ratios": (8, 8, 4, 4), "num_classes": 1000}
    model = timm.create_model("van_nano", **options).double().eval()
    model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
    image = torch.randn(2, 3, *size).double()
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain.eval()(image), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", PARAMETERS)
def test_variants(name):
    with torch.device("meta"):
        model = timm.create_model(name, drop_path_rate=0.3)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = torch.linspace(0, 0.3, len(blocks)).tolist()
    for block, rate in zip(blocks, rates, strict=True):
        for drop_path in (block.drop_path1, block.drop_path2):
            assert getattr(drop_path, "drop_prob", 0.0) == pytest.approx(rate)


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("van_nano").parameters()) < 1e6


def assert_norms(model, eps):
    layer_norms = [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)]
    batch_norms = [(module.eps, module.momentum) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert layer_norms == [eps] * 4
    assert set(batch_norms) == {(1e-5, 0.1)}


def test_norms():
    """Outputs with random weights hardly see an epsilon."""
    assert_norms(timm.create_model("van_nano"), 1e-6)
    assert_norms(timm.create_model("van_nano", features_only=True, norm_eps=1e-5), 1e-5)


def test_initialisation():
    """Convolutions, pointwise ones too, are normal by their fan-out; layer scale starts at 0.01."""
    torch.manual_seed(0)
    model = timm.create_model("van_b0")
    block = model.stages[2].blocks[0]
    fan_outs = {
        model.stem.conv: 49 * 32,
        block.mixer.proj_in: 160,
        block.mixer.local: 25,
        block.mixer.spatial: 49,
        block.mixer.point: 160,
        block.mlp.fc1: 640,
        block.mlp.dwconv: 9,
        block.mlp.fc2: 160,
    }
    for module, fan_out in fan_outs.items():
        assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        assert module.bias.count_nonzero() == 0
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(block.ls1.gamma, torch.full((160,), 0.01))


def openmmlab_key(key):
    """Return OpenMMLab's name of an official key."""
    if key.startswith("head."):
        return key.replace("head.", "head.fc.")
    names = {"proj.": "projection.", "conv0": "DW_conv", "conv_spatial": "DW_D_conv", "dwconv.dwconv": "dwconv"}
    for official, name in names.items():
        key = key.replace(official, name)
    return "backbone." + key.replace("block", "blocks")


WRAPPERS = {
    "bare": lambda state: state,
    "training script": lambda state: {"arch": "van_b0", "state_dict": state, "args": argparse.Namespace(lr=1e-3)},
    "averaged": lambda state: {
        "state_dict": {key: torch.zeros_like(value) for key, value in state.items()},
        "state_dict_ema": state,
    },
    "ConvNeXt trainer": lambda state: {"model": state, "epoch": 29},
    "distributed": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "OpenMMLab": lambda state: {"meta": {}, "state_dict": {openmmlab_key(key): v for key, v in state.items()}},
}


@pytest.fixture(scope="module")
def official():
    """Return an official state dict and a small image."""
    return official_state(load_golden("van", "van_b0")), golden_image(64, 1)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper, official, tmp_path):
    state, image = official
    model = load_file("van_b0", tmp_path / "wrapped.pth", WRAPPERS[wrapper](state))
    own = model.state_dict()
    # Were a tensor not loaded, its values would be those of initialisation.
    assert torch.equal(own["stages.2.blocks.1.mixer.point.weight"], _pointwise(state, "conv1", 3, 1))
    assert torch.equal(own["head.fc.weight"], state["head.weight"])
    torch.save(own, tmp_path / "own.pth")
    again = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "own.pth")})
    with torch.no_grad():
        assert torch.equal(again.eval()(image), model(image))


def _pointwise(state, name, stage, block):
    return state[f"block{stage}.{block}.attn.spatial_gating_unit.{name}.weight"].flatten(1)


def test_download(official, tmp_path, monkeypatch):
    """A file of the training script loads from its address too, though it holds more than weights."""
    state, _ = official
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.save(WRAPPERS["training script"](state), tmp_path / "van.pth.tar")
    overlay = {"url": (tmp_path / "van.pth.tar").as_uri()}
    model = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.fc.weight, state["head.weight"])


def test_other_classes_and_channels(official, tmp_path):
    state, _ = official
    model = load_file("van_b0", tmp_path / "official.pth", {"state_dict": state}, num_classes=10, in_chans=1)
    assert torch.equal(model.stages[3].norm.weight, state["norm4.weight"])
    torch.testing.assert_close(model.stem.conv.weight, state["patch_embed1.proj.weight"].sum(1, keepdim=True))
    assert model.head.fc.weight.shape == (10, 256)


def test_misfit_is_told(official, tmp_path):
    state, _ = official
    with pytest.raises(ValueError, match=r"cannot build van_b1 .*84 unknown: stages.* of another shape: stem"):
        load_file("van_b1", tmp_path / "b0.pth", state)
    short = {key: value for key, value in state.items() if key != "norm2.weight"}
    with pytest.raises(ValueError, match=r"1 missing: stages.1.norm.weight$"):
        load_file("van_b0", tmp_path / "short.pth", short)


def test_weights_without_a_link_say_where_they_are():
    with pytest.raises(
        RuntimeError, match=r"no weights of van_b5 to download: fetch van_b5_22k\.pth from https://cloud"
    ):
        timm.create_model("van_b5.van_in22k", pretrained=True)
    with pytest.raises(RuntimeError, match=r"no weights of van_b6 to download: .*never released"):
        timm.create_model("van_b6", pretrained=True)


def test_preprocessing():
    """ImageNet-1k weights were trained on images scaled to [-1, 1], those that saw ImageNet-22k as usual."""
    cfg = timm.models.get_pretrained_cfg("van_b2.van_in1k")
    assert (cfg.mean, cfg.std, cfg.crop_pct, cfg.interpolation) == ((0.5,) * 3, (0.5,) * 3, 0.9, "bicubic")
    cfg = timm.models.get_pretrained_cfg("van_b5.van_in22k_ft_in1k_384")
    assert (cfg.mean, cfg.std) == (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    assert (cfg.input_size, cfg.crop_pct, cfg.crop_mode) == ((3, 384, 384), 1.0, "squash")


def test_bad_ratios():
    with pytest.raises(ValueError, match=r"mlp_ratios=\(4,\) must be one for each stage"):
        timm.create_model("van_nano", mlp_ratios=(4,))
