"""Every L2ViT golden, reached the way a user reaches official weights: a file given to timm.create_model."""

import pytest
import timm
import torch

from saccade.models.checkpoint import rename
from saccade.models.l2vit_checkpoint import OFFICIAL_NAMES

from ..fill import GOLDENS, golden_image, load_golden, named_tensor, official_state
from ..parity import assert_close, assert_logits, assert_map, load_file, watch

NAMES = sorted(path.stem for path in (GOLDENS / "l2vit").glob("*.json"))
PARAMETERS = {
    "l2vit_tiny": 28_596_781,
    "l2vit_small": 50_199_157,
    "l2vit_base": 88_577_188,
    "l2vit_base_384": 88_577_188,
}


@pytest.mark.parametrize("name", NAMES)
def test_classifier(name, tmp_path):
    golden = load_golden("l2vit", name)
    model = load_file(golden["model"], tmp_path / "official.pth", {"model": official_state(golden)})
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    maps = watch(*model.stages)
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden)
        for index, (stage, reference) in enumerate(zip(model.stages, golden["stages"], strict=True)):
            assert_map(maps[stage], reference, f"stage {index}")
        for extra in golden.get("extra", []):
            logits = model(golden_image(*extra["input"]))
            assert_close(logits[-1, :16], extra["logits_last_image"], f"logits at {extra['input']}")
            assert_close(logits.norm(), extra["logits_norm"], f"norm of logits at {extra['input']}")


def backward(tmp_path, dtype, through=None):
    """Return the golden, and model, image and cotangent of its backward pass, the stem's gradient sent `through`."""
    golden = load_golden("l2vit", "l2vit_tiny")
    model = load_file(golden["model"], tmp_path / "official.pth", {"model": official_state(golden)}).to(dtype)
    if through:
        model.stem.bns[-1].register_forward_hook(lambda module, args, out: out.register_hook(through) and None)
    image = golden_image(*golden["input"]).to(dtype).requires_grad_()
    logits = model(image)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    (logits * weights).sum().backward()
    return golden, model, image, weights


def misread(gradient):
    """Take a map's memory, channels last, for that of one whose channels come first.

    It is what PyTorch's batch norm on CPUs makes (2.12.1) of the gradient for one image that comes back through
    flatten(2).transpose(1, 2). The official code goes that way, ours does not, so the gradients of its stem were
    recorded wrong.
    """
    return gradient.permute(0, 2, 3, 1).reshape(gradient.shape)


def test_gradient(tmp_path):
    golden, model, image, _ = backward(tmp_path, torch.float32, misread)
    assert_close(image.grad.flatten()[:32], golden["grad"]["input_first32"], "gradient of the image")
    norms, parameters = rename(golden["grad"]["param_norms"], OFFICIAL_NAMES), dict(model.named_parameters())
    assert norms.keys() == parameters.keys()
    for key, norm in norms.items():
        assert_close(parameters[key].grad.double().norm(), norm, f"norm of the gradient of {key}")


def test_gradient_of_the_stem(tmp_path):
    """By differences, which show ours to be right."""
    _, model, image, weights = backward(tmp_path, torch.float64)
    for parameter in (model.stem.bns[1].bias, model.stem.convs[0].weight):
        step = 1e-6 * named_tensor("step", list(parameter.shape)).double()
        with torch.no_grad():
            parameter += step
            above = (model(image) * weights).sum()
            parameter -= 2 * step
            below = (model(image) * weights).sum()
            parameter += step
        torch.testing.assert_close((above - below) / 2, (parameter.grad * step).sum(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", PARAMETERS)
def test_variants(name):
    with torch.device("meta"):
        model = timm.create_model(name, drop_path_rate=0.3)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert {block.mixer.window for block in blocks[::2]} == {(12, 12) if name.endswith("384") else (7, 7)}
    for block, rate in zip(blocks, torch.linspace(0, 0.3, len(blocks)).tolist(), strict=True):
        drops = [block.drop_path1, block.drop_path2]
        for drop_path in (*drops, *([block.between.drop_path] if hasattr(block.between, "norm") else [])):
            assert getattr(drop_path, "drop_prob", 0.0) == pytest.approx(rate)


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("l2vit_nano").parameters()) < 1e6


def test_dense_checkpoints(tmp_path):
    """A detector's file holds the backbone beside other parts, with a norm for each map and no head."""
    golden = load_golden("l2vit", "l2vit_tiny")
    state = {key: value for key, value in official_state(golden).items() if not key.startswith(("norm.", "head."))}
    norms = {f"norm{i}.{leaf}": torch.full((96 * 2**i,), 1.0 + i) for i in range(4) for leaf in ("weight", "bias")}
    hosted = {f"backbone.{key}": value for key, value in {**state, **norms}.items()}
    checkpoint = {"meta": {}, "state_dict": {**hosted, "rpn_head.rpn_cls.weight": torch.zeros(3, 256, 1, 1)}}
    options = {"features_only": True, "out_norms": True}
    model = load_file("l2vit_tiny", tmp_path / "detector.pth", checkpoint, **options)
    with torch.no_grad():
        maps = model(golden_image(*golden["input"]))
    for index, (value, reference) in enumerate(zip(maps, golden["stages"], strict=True)):
        assert list(value.shape) == reference["shape"]
        # A norm's output has the mean of its bias and the spread of its weight.
        assert value.mean().item() == pytest.approx(1.0 + index, rel=1e-4)
        assert value.std(correction=0).item() == pytest.approx(1.0 + index, rel=1e-3)


def test_our_own_checkpoint(tmp_path):
    model = timm.create_model("l2vit_nano").eval()
    again = load_file("l2vit_nano", tmp_path / "own.pth", {"state_dict": model.state_dict()})
    with torch.no_grad():
        assert torch.equal(again(golden_image(70, 1)), model(golden_image(70, 1)))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"num_heads=\(1, 2\) must be one for each stage of depths=\(2, 2, 4, 2\)"):
        timm.create_model("l2vit_nano", num_heads=(1, 2))
