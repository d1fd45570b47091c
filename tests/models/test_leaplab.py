"""The variants of Agent, FLatten and InLine, and the ways their checkpoints come."""

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.layers.agent import AgentCore
from saccade.layers.position import resize_map
from saccade.layers.softmax import SoftmaxCore
from saccade.models.leaplab import DERIVED

from ..fill import golden_image, load_golden, official_state
from ..parity import load_file

# Parameters as the repositories have them, less the two vectors of FLatten-PVT's norm that nothing reads.
PARAMETERS = {
    "agent_deit_tiny": 6_015_640,
    "agent_deit_small": 22_647_112,
    "agent_deit_small_448": 23_070_472,
    "agent_deit_base": 87_204_904,
    "agent_pvt_tiny": 11_570_352,
    "agent_pvt_small": 20_635_066,
    "agent_pvt_medium": 35_921_746,
    "agent_pvt_medium_256": 36_083_682,
    "agent_pvt_large": 48_738_180,
    "flatten_pvt_tiny": 12_150_504 - 1024,
    "flatten_pvt_small": 21_670_248 - 1024,
    "flatten_pvt_medium": 37_242_216 - 1024,
    "flatten_pvt_large": 50_649_192 - 1024,
    "flatten_pvt_v2_b0": 3_594_824,
    "flatten_pvt_v2_b1": 12_931_240,
    "flatten_pvt_v2_b2": 22_548_264,
    "flatten_pvt_v2_b3": 38_273_832,
    "flatten_pvt_v2_b4": 51_836_968,
    "inline_deit_tiny": 6_477_736,
    "inline_deit_small": 16_734_760,
    "inline_deit_base": 23_797_096,
    "inline_pvt_tiny": 12_032_232,
    "inline_pvt_small": 21_556_136,
    "inline_pvt_medium": 37_618_856,
    "inline_pvt_large": 51_154_280,
    "agent_swin_tiny": 28_902_964,
    "agent_swin_small": 49_666_684,
    "agent_swin_small_288": 49_707_964,
    "agent_swin_base": 88_095_096,
    "agent_swin_base_384": 88_305_016,
    "agent_cswin_tiny": 20_458_672,
    "agent_cswin_small": 32_814_100,
    "agent_cswin_base": 73_249_696,
    "agent_cswin_base_384": 73_328_416,
    "flatten_swin_tiny": 29_192_384,
    "flatten_swin_small": 50_510_288,
    "flatten_swin_base": 88_972_488,
    "flatten_swin_base_384": 91_433_928,
    "flatten_cswin_tiny": 21_201_768,
    "flatten_cswin_small": 35_451_752,
    "flatten_cswin_base": 74_867_032,
    "flatten_cswin_base_384": 78_369_112,
    "inline_swin_tiny": 29_223_544,
    "inline_swin_small": 49_793_296,
    "inline_swin_base": 88_350_120,
    "inline_swin_base_384": 88_465_320,
    "inline_cswin_tiny": 20_604_520,
    "inline_cswin_small": 33_032_872,
    "inline_cswin_base": 73_413_640,
    "inline_cswin_base_384": 73_413_640,
}


def blocks_of(model):
    return model.blocks if hasattr(model, "blocks") else [block for stage in model.stages for block in stage.blocks]


@pytest.mark.parametrize("name", PARAMETERS)
def test_variants(name):
    with torch.device("meta"):
        model = timm.create_model(name, drop_path_rate=0.3)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    blocks = blocks_of(model)
    for block, rate in zip(blocks, torch.linspace(0, 0.3, len(blocks)).tolist(), strict=True):
        assert getattr(block.drop_path1, "drop_prob", 0.0) == pytest.approx(rate)
        assert getattr(block.drop_path2, "drop_prob", 0.0) == pytest.approx(rate)


@pytest.mark.parametrize("name", ["agent_deit_nano", "flatten_swin_nano", "inline_pvt_nano"])
def test_nano_is_small(name):
    assert sum(p.numel() for p in timm.create_model(name).parameters()) < 1e6


def test_agents():
    """81 in the first four blocks of Agent-DeiT-B alone; 9, 16, 49 and 49 in the stages of Agent-PVT."""
    with torch.device("meta"):
        deit, pvt = timm.create_model("agent_deit_base"), timm.create_model("agent_pvt_tiny")
    assert [type(block.mixer.core) for block in deit.blocks] == [AgentCore] * 4 + [SoftmaxCore] * 8
    assert deit.blocks[0].mixer.core.agent_grid == (9, 9)
    assert [stage.blocks[0].mixer.core.agent_grid for stage in pvt.stages] == [(3, 3), (4, 4), (7, 7), (7, 7)]


def test_other_agents():
    """Numbers and grids of agents are open to the caller; the tables belong to the numbers."""
    options = {"agent_num": (4, 4, 9, 9), "agent_grids": ((5, 4), (4, 4), (3, 3), (2, 6)), "num_classes": 0}
    model = timm.create_model("agent_pvt_tiny", **options)
    cores = [stage.blocks[0].mixer.core for stage in model.stages]
    assert [core.agent_grid for core in cores] == [(5, 4), (4, 4), (3, 3), (2, 6)]
    assert [len(core.an_bias[0]) for core in cores] == [4, 4, 9, 9]
    assert model(torch.randn(1, 3, 96, 70)).isfinite().all()
    assert timm.create_model("agent_deit_nano", agent_grids=(3, 5)).blocks[0].mixer.core.agent_grid == (3, 5)
    with pytest.raises(ValueError, match=r"agent_grids=\(\(5, 4\),\) must be one pair for each stage of agent_num="):
        timm.create_model("agent_pvt_tiny", agent_grids=((5, 4),))


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("agent_deit_tiny", None),
        ("flatten_pvt_v2_b0", None),
        ("inline_pvt_tiny", None),
        ("agent_swin_base", None),
        ("flatten_swin_tiny", None),
        ("agent_cswin_tiny", "AAAA"),
        ("inline_cswin_tiny", "IIII"),
    ],
)
def test_operations_grow_linearly(name, letters):
    """Of whole models; CSwin's stripes grow with the map, so that its stages with softmax attention do not."""
    counts = []
    with torch.device("meta"):
        model = timm.create_model(name, **({"attn_type": letters} if letters else {})).eval()
        for size in (224, 448, 896):
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, size, size))
            counts.append(counter.get_total_flops())
    # At other sizes than the native one, tables are resampled too.
    assert all(3.5 * small < large < 4.2 * small for small, large in pairwise(counts))


def test_preprocessing():
    """Images are warped to a square of 256 / 224 of the input size, of which the centre is taken, or all of it."""
    for name, size in {"flatten_pvt_tiny": 224, "agent_pvt_medium_256": 256, "inline_deit_base": 448}.items():
        cfg = timm.models.get_pretrained_cfg(name)
        assert (cfg.input_size, cfg.crop_pct, cfg.crop_mode) == ((3, size, size), 0.875, "squash")
        assert (cfg.interpolation, cfg.mean, cfg.license) == ("bicubic", timm.data.IMAGENET_DEFAULT_MEAN, "none stated")
    uncropped = {name for name in PARAMETERS if timm.models.get_pretrained_cfg(name).crop_pct == 1.0}
    assert uncropped == {
        "agent_swin_small_288",
        *(f"{family}_swin_base_384" for family in ("agent", "flatten", "inline")),
    }


@pytest.fixture(scope="module")
def official():
    """Return an official state dict of each body and the name of its model."""
    names = {
        "deit": ("agent", "agent_deit_t"),
        "pvt": ("flatten", "flatten_pvt_t"),
        "pvt_v2": ("flatten", "flatten_pvt_v2_b0"),
        "swin": ("flatten", "flatten_swin_t"),
        "cswin": ("agent", "agent_cswin_t"),
    }
    goldens = {body: load_golden(*name) for body, name in names.items()}
    return {body: (golden["model"], official_state(golden)) for body, golden in goldens.items()}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


WRAPPERS = {
    "bare": lambda state: state,
    "training script": lambda state: {"model": state, "optimizer": {}, "epoch": 299, "max_accuracy": 74.9},
    "distributed": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "dense": lambda state: {"meta": {}, "state_dict": {f"backbone.{key}": value for key, value in state.items()}},
    "with derived buffers": lambda state: {
        "model": {
            **state,
            "layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49),
            "a.relative_position_index": torch.zeros(9),
        }
    },
    "without derived buffers": lambda state: {key: value for key, value in state.items() if not DERIVED.search(key)},
}


# Some of the tensors of each body, under our names and the official ones.
TENSORS = {
    "deit": {
        "blocks.0.mixer.core.an_bias": "blocks.0.attn.an_bias",
        "blocks.0.mixer.proj.weight": "blocks.0.attn.proj.weight",
    },
    "pvt": {
        "stages.0.blocks.0.mixer.core.positional_encoding": "block1.0.attn.positional_encoding",
        "stages.0.blocks.0.mixer.proj.weight": "block1.0.attn.proj.weight",
    },
    "swin": {
        "stages.0.blocks.0.mixer.core.positional_encoding": "layers.0.blocks.0.attn.positional_encoding",
        "stages.3.blocks.1.mixer.qkv.weight": "layers.3.blocks.1.attn.qkv.weight",
        "stages.1.downsample.reduction.weight": "layers.0.downsample.reduction.weight",
    },
    "cswin": {
        "stages.0.blocks.0.mixer.branches.0.core.an_bias": "stage1.0.attns.0.an_bias",
        "stages.2.blocks.17.mixer.branches.1.lepe.weight": "stage3.17.attns.1.get_v.weight",
        "stages.3.blocks.0.mixer.proj.weight": "stage4.0.proj.weight",
    },
}
TENSORS["pvt_v2"] = TENSORS["pvt"]


@pytest.mark.parametrize("body", TENSORS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper, body, official, tmp_path):
    name, state = official[body]
    model = load_file(name, tmp_path / "wrapped.pth", WRAPPERS[wrapper](state))
    own = model.state_dict()
    # Were a tensor not loaded, its values would be those of initialisation.
    for key, theirs in {**TENSORS[body], "head.fc.weight": "head.weight"}.items():
        assert torch.equal(own[key].flatten(), state[theirs].flatten()), key
    again = load_file(name, tmp_path / "own.pth", own).state_dict()
    assert all(torch.equal(again[key], value) for key, value in own.items())


def test_averaged_weights(official, tmp_path):
    """Agent's and InLine's are the evaluated ones where a file has them; FLatten evaluated the others."""
    name, state = official["deit"]
    model = load_file(name, tmp_path / "averaged.pth", {"model": zeros(state), "state_dict_ema": state})
    assert torch.equal(model.head.fc.weight, state["head.weight"])
    name, state = official["pvt_v2"]
    checkpoint = {"model": state, "state_dict_ema": zeros(state)}
    model = load_file(name, tmp_path / "averaged.pth", checkpoint)
    assert torch.equal(model.head.fc.weight, state["head.weight"])
    dense = load_file(name, tmp_path / "averaged.pth", checkpoint, features_only=True)
    assert torch.equal(dense.model.stages[3].norm.weight, state["norm4.weight"])
    for part in (model, dense, dense.model):
        assert "state_dict" not in part.pretrained_cfg


def test_pickled_yacs_configuration(official, tmp_path, monkeypatch):
    """What the official trainer saves is read though yacs is not there."""
    yacs = ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    for name, state in (official["deit"], official["pvt_v2"]):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
            patch.setitem(sys.modules, "yacs.config", yacs)
            torch.save({"model": state, "config": yacs.CfgNode(MODEL=yacs.CfgNode(NAME=name))}, tmp_path / "c.pth")
        overlay = {"file": str(tmp_path / "c.pth")}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.head.fc.weight, state["head.weight"])


def test_misfit_is_told(official, tmp_path):
    _, state = official["deit"]
    with pytest.raises(ValueError, match=r"cannot build agent_deit_small .* of another shape: cls_token"):
        load_file("agent_deit_small", tmp_path / "tiny.pth", {"model": state})
    with pytest.raises(ValueError, match=r"cannot build inline_deit_tiny .*missing: .*residual"):
        load_file("inline_deit_tiny", tmp_path / "agent.pth", {"model": state})
    short = {key: value for key, value in state.items() if key != "blocks.3.norm2.bias"}
    with pytest.raises(ValueError, match=r"1 missing: blocks\.3\.norm2\.bias$"):
        load_file("agent_deit_tiny", tmp_path / "short.pth", short)


def test_other_classes_and_channels(official, tmp_path):
    for name, state in official.values():
        model = load_file(name, tmp_path / "official.pth", {"model": state}, num_classes=10, in_chans=1)
        first = next(value for value in state.values() if value.dim() == 4)
        torch.testing.assert_close(model.stem.conv.weight, first.sum(1, keepdim=True))
        assert model.head.fc.weight.shape[0] == 10


@pytest.mark.parametrize("body", TENSORS)
@pytest.mark.parametrize("img_size", [320, (160, 256)])
def test_fine_tuning_at_another_size(body, img_size, official, tmp_path):
    """Tables are resampled on loading to what the model of the file's own size uses at that size."""
    name, state = official[body]
    native = load_file(name, tmp_path / "official.pth", {"model": state})
    other = load_file(name, tmp_path / "official.pth", {"model": state}, img_size=img_size)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (native, other)]
    assert shapes[0] != shapes[1]
    x = golden_image(list(img_size) if isinstance(img_size, tuple) else img_size, 1)
    with torch.no_grad():
        torch.testing.assert_close(other(x), native(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["agent_deit_nano", "inline_pvt_nano", "flatten_pvt_v2_b0", "flatten_swin_nano"])
def test_own_checkpoint_of_another_size(name, tmp_path):
    """A model made for images that are not square saves tables that others can be resampled from."""
    wide = timm.create_model(name, img_size=(64, 96))
    loaded = load_file(name, tmp_path / "wide.pth", wide.state_dict(), num_classes=1000)
    wide.set_input_size(loaded.pretrained_cfg["input_size"][1:])
    for key, value in wide.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value)


def test_fine_tuning_with_another_window(official, tmp_path):
    """Bias tables are resampled bicubically, in the official layout or ours; what is derived is dropped."""
    name, state = official["swin"]
    table = "layers.2.blocks.1.attn.relative_position_bias_table"
    resized = torch.nn.functional.interpolate(state[table].mT.unflatten(1, (13, 13))[None], size=23, mode="bicubic")
    options = {"img_size": 384, "window": 12}
    found = load_file(name, tmp_path / "window_7.pth", {"model": state}, **options).state_dict()
    resized = {**state, table: resized[0].flatten(1).mT}
    expected = load_file(name, tmp_path / "window_12.pth", {"model": resized}, **options).state_dict()
    key = "stages.2.blocks.1.mixer.rpb"
    assert found[key].shape == (12, 23, 23)
    torch.testing.assert_close(found[key], expected[key])
    own = load_file(name, tmp_path / "window_7.pth", {"model": state}).state_dict()
    found = load_file(name, tmp_path / "own.pth", own, **options).state_dict()
    torch.testing.assert_close(found[key], expected[key])


def test_resampling_rules(official, tmp_path):
    """As the official fine-tuning code has them: bicubic positions, class token's apart, linear rows and columns."""
    name, state = official["deit"]
    own = load_file(name, tmp_path / "official.pth", {"model": state}, img_size=448).state_dict()
    positions = state["pos_embed"]
    assert torch.equal(own["cls_position"], positions[:, :1])
    square = positions[0, 1:].unflatten(0, (14, 14)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(square, size=(28, 28), mode="bicubic", align_corners=False)
    torch.testing.assert_close(own["position.table"], expected[0].permute(1, 2, 0))
    rows = state["blocks.2.attn.ha_bias"][0, :, :, 0].mT
    expected = torch.nn.functional.interpolate(rows, size=28, mode="linear", align_corners=False).mT[None, :, :, None]
    torch.testing.assert_close(own["blocks.2.mixer.core.ha_bias"], expected)
    assert torch.equal(own["blocks.2.mixer.core.na_bias"], state["blocks.2.attn.na_bias"])
    name, state = official["pvt"]
    own = load_file(name, tmp_path / "official.pth", {"model": state}, img_size=448).state_dict()
    square = state["pos_embed3"][0].unflatten(0, (14, 14)).permute(2, 0, 1)[None]
    torch.testing.assert_close(own["stages.2.position.table"], resize_map(square, (28, 28))[0].permute(1, 2, 0))
    keys = state["block3.0.attn.positional_encoding"][0].unflatten(0, (14, 14)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(keys, size=(28, 28), mode="bicubic", align_corners=False)
    found = own["stages.2.blocks.0.mixer.core.positional_encoding"]
    torch.testing.assert_close(found.reshape(28, 28, 320), expected[0].permute(1, 2, 0))


def test_released_files():
    """38 of the 50 have a file of their own; the others say that there is none."""
    released = [cfg.url for cfg in map(timm.models.get_pretrained_cfg, PARAMETERS) if cfg.url]
    assert len(released) == len(set(released)) == 38
    assert all(url.startswith("https://cloud.tsinghua.edu.cn/f/") and url.endswith("/?dl=1") for url in released)
    with pytest.raises(RuntimeError, match=r"no weights of flatten_pvt_small .*/FLatten-Transformer has released none"):
        timm.create_model("flatten_pvt_small", pretrained=True)
