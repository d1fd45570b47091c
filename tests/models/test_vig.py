"""Every ViG golden, reached the way a user reaches official weights: a file given to timm.create_model."""

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from saccade.layers.gated_linear import GatedLinearAttention
from saccade.models.checkpoint import rename
from saccade.models.vig_checkpoint import OFFICIAL_NAMES

from ..fill import GOLDENS, golden_image, load_golden, official_state, relative_error
from ..parity import TOLERANCE, assert_close, assert_logits, assert_map, load_file, watch

NAMES = sorted(path.stem for path in (GOLDENS / "vig").glob("*.json"))
# ViG-H's are rounded more in single precision, the official ones by 4e-6 to 8e-6 of their logits.
TOLERANCES = {name: 1e-4 if name.startswith("vigla_h") else TOLERANCE for name in NAMES}
PARAMETERS = {
    "vigla_tiny": 5_834_536,
    "vigla_small": 22_615_144,
    "vigla_base": 89_022_184,
    "vigla_h_tiny": 28_600_680,
    "vigla_h_small": 50_051_688,
    "vigla_h_base": 88_904_360,
}


def load(name, tmp_path):
    golden = load_golden("vig", name)
    return golden, load_file(name, tmp_path / "official.pth", {"model": official_state(golden)})


def steps(model):
    """Return what the recorded maps come out of: blocks of ViG, stages of ViG-H."""
    return [model.steps[index] for index in model.feature_indices]


@pytest.mark.parametrize("name", NAMES)
def test_classifier(name, tmp_path):
    golden, model = load(name, tmp_path)
    tolerance = TOLERANCES[name]
    assert sum(p.numel() for p in model.parameters()) == golden["params"] == PARAMETERS[name]
    maps = watch(*steps(model))
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden, tolerance)
        for index, (step, reference) in enumerate(zip(steps(model), golden["stages"], strict=True)):
            assert_map(maps[step], reference, f"map {index}", tolerance)
        for extra in golden.get("extra", []):
            logits = model(golden_image(*extra["input"]))
            assert_close(logits[-1, :16], extra["logits_last_image"], f"logits at {extra['input']}", tolerance)
            assert_close(logits.norm(), extra["logits_norm"], f"norm of logits at {extra['input']}", tolerance)


@pytest.mark.parametrize("name", ["vigla_tiny", "vigla_h_tiny"])
def test_training_path(name, tmp_path):
    golden, model = load(name, tmp_path)
    for module in model.modules():
        if isinstance(module, GatedLinearAttention):
            module.train()
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden["training_path"], TOLERANCES[name])


@pytest.mark.parametrize("name", ["vigla_tiny", "vigla_h_tiny"])
def test_gradient(name, tmp_path):
    golden, model = load(name, tmp_path)
    image = golden_image(*golden["input"]).requires_grad_()
    logits = model(image)
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)))
    norms = rename(golden["grad"]["param_norms"], [("^pos_embed$", "stem.position.table"), *OFFICIAL_NAMES])
    parameters = dict(model.named_parameters())
    assert norms.keys() == parameters.keys()
    for key, norm in norms.items():
        assert_close(parameters[key].grad.double().norm(), norm, f"norm of the gradient of {key}", TOLERANCES[name])
    assert_close(image.grad.double().norm(), golden["grad"]["input_norm"], "norm of the image's", TOLERANCES[name])
    assert_close(image.grad.flatten()[:32], golden["grad"]["input_first32"], "gradient of the image", TOLERANCES[name])


@pytest.mark.parametrize("name", PARAMETERS)
def test_variants(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    rates = {"vigla_tiny": 0.0, "vigla_small": 0.2, "vigla_base": 0.5}
    rates |= {"vigla_h_tiny": 0.2, "vigla_h_small": 0.3, "vigla_h_base": 0.6}
    blocks = [module for module in model.modules() if type(module).__name__ == "MixerBlock"]
    for block, rate in zip(blocks, torch.linspace(0, rates[name], len(blocks)).tolist(), strict=True):
        assert getattr(block.drop_path1, "drop_prob", 0.0) == pytest.approx(rate)
        assert (block.mixer.out_act(torch.tensor(-1.0)) != -1) == (name == "vigla_tiny")
    cfg = get_pretrained_cfg(name)
    assert cfg.url.startswith("https://huggingface.co/hustvl/ViG/resolve/main/vig_")
    assert len(cfg.notes[0].removeprefix("sha256 of the file: ")) == 64


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("vigla_nano").parameters()) < 1e6


def test_older_names(tmp_path):
    """ViG-H's older files call a block's first half ln_1 and self_attention, and have norm and head at the top."""
    golden = load_golden("vig", "vigla_h_tiny")
    old = [(r"(blocks\.\d+)\.norm\.", r"\1.ln_1."), (r"\.op\.", ".self_attention."), (r"^classifier\.", "")]
    state = rename(official_state(golden), old)
    assert {"norm.weight", "head.bias", "layers.0.blocks.0.self_attention.g_norm.weight"} <= state.keys()
    model = load_file("vigla_h_tiny", tmp_path / "old.pth", state)
    new = load_file("vigla_h_tiny", tmp_path / "new.pth", {"state_dict_ema": official_state(golden)})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), new.parameters(), strict=True))


def test_positions_of_another_size(tmp_path):
    golden = load_golden("vig", "vigla_tiny")
    state = official_state(golden)
    model = load_file("vigla_tiny", tmp_path / "official.pth", state)
    other = load_file("vigla_tiny", tmp_path / "official.pth", state, img_size=(256, 192))
    assert other.stem.position.table.shape == (16, 12, 192)
    image = golden_image((256, 192), 1)
    with torch.no_grad():
        truth = model(image)
        assert relative_error(other(image), truth) < TOLERANCE
        model.set_input_size((256, 192))
        assert relative_error(model(image), truth) < TOLERANCE
    with pytest.raises(ValueError, match=r"pos_embed has shape \[1, 195, 192\]; valid"):
        load_file("vigla_tiny", tmp_path / "cut.pth", {**state, "pos_embed": state["pos_embed"][:, 1:]})


@pytest.mark.parametrize("size", [1, 6, 7, 8, 15, 16, 24, 97, 200, (200, 264)])
def test_grid_is_the_map(size):
    with torch.device("meta"):
        for name, patch in (("vigla_tiny", 16), ("vigla_nano", 8)):
            model = timm.create_model(name)
            height, width = (size, size) if isinstance(size, int) else size
            assert model.stem.stride == patch
            assert model.stem.grid(size) == model.stem(torch.empty(1, 3, height, width)).shape[1:3]


def test_features(tmp_path):
    golden = load_golden("vig", "vigla_h_tiny")
    model = load_file("vigla_h_tiny", tmp_path / "official.pth", official_state(golden), features_only=True)
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["stages"], strict=True)):
        assert_map(value, reference, f"map {index}", TOLERANCES["vigla_h_tiny"])


@pytest.mark.parametrize("name", ["vigla_nano", "vigla_h_tiny"])
def test_our_own_checkpoint(name, tmp_path):
    model = timm.create_model(name).eval()
    again = load_file(name, tmp_path / "own.pth", {"state_dict": model.state_dict()})
    with torch.no_grad():
        assert torch.equal(again(golden_image(70, 1)), model(golden_image(70, 1)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vigla_nano", {"patch_size": 5}, "patch_size=5 must be even and at least 2"),
        ("vigla_h_tiny", {"num_heads": (1, 2)}, r"num_heads=\(1, 2\) must be one for each stage of depths="),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **options)
