"""RAVLT, MAViT and NaLaFormer: goldens, checkpoints, variants."""

import argparse

import pytest
import timm
import torch
from torch import nn

from saccade.models.checkpoint import rename
from saccade.models.gated_pyramid import OFFICIAL_NAMES, checkpoint_filter_fn

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_close, assert_logits, assert_map, load_file, watch

FOLDERS = ("rala", "mala", "nalaformer")
GOLDEN = [(folder, path.stem) for folder in FOLDERS for path in sorted((GOLDENS / folder).glob("*.json"))]
PARAMETERS = {
    "ravlt_tiny": (14.90, 0.1),
    "ravlt_small": (25.59, 0.15),
    "ravlt_base": (48.24, 0.4),
    "ravlt_large": (95.24, 0.55),
    "mavit_tiny": (16.45, 0.1),
    "mavit_small": (27.14, 0.15),
    "mavit_base": (49.79, 0.4),
    "mavit_large": (97.77, 0.55),
    "nalaformer_xtiny": (6.14, 0.1),
    "nalaformer_tiny": (15.91, 0.1),
    "nalaformer_small": (25.65, 0.15),
    "nalaformer_base": (52.00, 0.4),
    "nalaformer_large": (95.43, 0.55),
}
NANOS = ("ravlt_nano", "mavit_nano", "nalaformer_nano")


@pytest.mark.parametrize(("folder", "name"), GOLDEN, ids=lambda value: value)
def test_classifier(folder, name, tmp_path):
    """The file's frequencies are used, which in these numbers are none that a rotary code has."""
    golden = load_golden(folder, name)
    model = load_file(golden["model"], tmp_path / "official.pth", {"model": official_state(golden), "epoch": 299})
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    maps = watch(*model.stages)
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden)
        for index, (stage, reference) in enumerate(zip(model.stages, golden["stages"], strict=True)):
            assert_map(maps[stage], reference, f"stage {index}")
        for extra in golden["extra"]:
            logits = model(golden_image(*extra["input"]))
            assert_close(logits[-1, :16], extra["logits_last_image"], f"logits at {extra['input'][0]}")
            assert_close(logits.norm(), extra["logits_norm"], f"norm of logits at {extra['input'][0]}")


@pytest.mark.parametrize(("folder", "name"), GOLDEN, ids=lambda value: value)
def test_rotary_frequencies(folder, name):
    """Without the file's frequencies the model has those of the official constructor."""
    golden = load_golden(folder, name)
    model = timm.create_model(golden["model"]).eval()
    state = {key: value for key, value in official_state(golden).items() if not key.endswith("RoPE.angle")}
    model.load_state_dict(checkpoint_filter_fn(state, model))
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden["constructor_buffers"])


@pytest.mark.parametrize(("folder", "name"), [case for case in GOLDEN if "grad" in load_golden(*case)])
def test_gradients(folder, name, tmp_path):
    golden = load_golden(folder, name)
    model = load_file(golden["model"], tmp_path / "official.pth", official_state(golden))
    image = golden_image(*golden["input"]).requires_grad_()
    logits = model(image)
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)))
    assert_close(image.grad.flatten()[:32], golden["grad"]["input_first32"], "gradient of the image")
    assert_close(image.grad.double().norm(), golden["grad"]["input_norm"], "norm of the gradient of the image")
    norms = {key: torch.tensor(norm) for key, norm in golden["grad"]["param_norms"].items()}
    own = dict(model.named_parameters())
    assert len(norms) == len(own)
    for key, norm in rename(norms, OFFICIAL_NAMES).items():
        assert_close(own[key].grad.double().norm(), norm, f"norm of the gradient of {key}")


@pytest.mark.parametrize("name", PARAMETERS)
def test_variants(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    millions, drop_path = PARAMETERS[name]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = torch.linspace(0, drop_path, len(blocks)).tolist()
    for block, rate in zip(blocks, rates, strict=True):
        for module in (block.drop_path1, block.drop_path2):
            assert getattr(module, "drop_prob", 0.0) == pytest.approx(rate)


@pytest.mark.parametrize("name", NANOS)
def test_nano_is_small(name):
    assert sum(p.numel() for p in timm.create_model(name).parameters()) < 1e6


@pytest.mark.parametrize(("folder", "name"), [case for case in GOLDEN if "base" in case[1]])
def test_layer_scales(folder, name):
    """Layer scales, weights and biases start as the official ones."""
    torch.manual_seed(0)
    model = timm.create_model(load_golden(folder, name)["model"])
    scales = [block.ls2.gamma.unique().item() for stage in model.stages for block in stage.blocks[:1]]
    assert scales == pytest.approx([1, 1, 1e-6, 1e-6])
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # Of a normal distribution of std 0.02; one weight in 2^24 is at the limit, which a std would show.
            assert module.weight.abs().median().item() == pytest.approx(0.6745 * 0.02, rel=0.15)
            assert module.bias.count_nonzero() == 0
        elif isinstance(module, nn.LayerNorm):
            assert module.eps in (1e-6, 1e-5)


@pytest.fixture(scope="module", params=["rala/ravlt_tiny", "mala/mavit_tiny"])
def official(request):
    """Return a model's name, its official state dict and a small image."""
    golden = load_golden(*request.param.split("/"))
    return golden["model"], official_state(golden), golden_image(64, 1)


WRAPPERS = {
    "bare": lambda state: state,
    "trainer": lambda state: {"model": state, "epoch": 299, "args": argparse.Namespace(lr=1e-3)},
    "averaged": lambda state: {"model": {key: torch.zeros_like(x) for key, x in state.items()}, "model_ema": state},
    "distributed": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper, official, tmp_path):
    name, state, image = official
    model = load_file(name, tmp_path / "wrapped.pth", WRAPPERS[wrapper](state))
    own = model.state_dict()
    assert torch.equal(own["head.fc.weight"], state["head.weight"].flatten(1))
    assert torch.equal(own["stages.2.blocks.1.mixer.core.frequency"], state["layers.2.RoPE.angle"])
    torch.save(own, tmp_path / "own.pth")
    again = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "own.pth")})
    with torch.no_grad():
        assert torch.equal(again.eval()(image), model(image))


def test_detection_backbone(official, tmp_path):
    """The official backbone of detectors norms each map, and has no head."""
    name, state, image = official
    state = {key: value for key, value in state.items() if not key.startswith(("proj.", "norm.", "head."))}
    for index, dim in enumerate((64, 128, 256, 512)):
        state[f"extra_norms.{index}.norm.weight"] = torch.linspace(0.5, 1, dim)
        state[f"extra_norms.{index}.norm.bias"] = torch.linspace(0, 1, dim)
    checkpoint = {"state_dict": {f"backbone.{key}": value for key, value in state.items()}}
    model = load_file(name, tmp_path / "detector.pth", checkpoint, features_only=True, out_norms=True)
    plain = load_file(name, tmp_path / "backbone.pth", state | {"extra_norms.0.norm.bias": torch.zeros(64)},
                      features_only=True, out_norms=True)  # fmt: skip
    with torch.no_grad():
        maps, unshifted = model(image), plain(image)
    torch.testing.assert_close(maps[0] - unshifted[0], torch.linspace(0, 1, 64).view(-1, 1, 1).expand_as(maps[0]))
    assert [value.shape[1] for value in maps] == [64, 128, 256, 512]
    assert {norm.eps for norm in model.model.out_norms} == {1e-6}


def test_other_classes_and_channels(official, tmp_path):
    name, state, _ = official
    model = load_file(name, tmp_path / "official.pth", {"model": state}, num_classes=10, in_chans=1)
    torch.testing.assert_close(model.stem.convs[0].weight, state["patch_embed.proj.0.weight"].sum(1, keepdim=True))
    assert model.head.fc.weight.shape[0] == 10


def test_misfit_is_told(official, tmp_path):
    name, state, _ = official
    short = {key: value for key, value in state.items() if key != "layers.1.blocks.0.pos.weight"}
    with pytest.raises(ValueError, match=r"1 missing: stages.1.blocks.0.before.conv.weight$"):
        load_file(name, tmp_path / "short.pth", short)


@pytest.mark.parametrize("name", NANOS)
def test_images_of_any_size_agree_with_a_batch(name):
    model = timm.create_model(name).eval()
    for size in ((33, 47), (96, 1), (1, 1), (130, 61)):
        x = golden_image(size, 3)
        with torch.no_grad():
            torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixers": ("rala",)}, r"mixers=\('rala',\) must be one for each stage of depths="),
        ({"num_heads": (2,)}, r"num_heads=\(2,\) must be one for each stage"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(NANOS[0], **arguments)
