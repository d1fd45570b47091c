"""Every golden of SOFT and SOFT++, reached the way a user reaches official weights: a file for timm."""

import math
import re

import pytest
import timm
import torch

from saccade.models.checkpoint import rename
from saccade.models.soft_checkpoint import OFFICIAL_NAMES

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_close, assert_logits, assert_map, load_file

NAMES = sorted(path.stem for path in (GOLDENS / "soft").glob("*.json"))
TOLERANCE = 1e-4
PARAMETERS = {"tiny": 13_069_056, "small": 38_858_462, "medium": 45_812_707, "large": 64_700_646, "huge": 87_108_273}


@pytest.mark.parametrize("name", NAMES)
def test_classifier(name, tmp_path):
    golden = load_golden("soft", name)
    model = load_file(golden["model"], tmp_path / "official.pth", {"state_dict_ema": official_state(golden)})
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        final, maps = model.forward_intermediates(golden_image(*golden["input"]))
        assert_logits(model.forward_head(final)[0], golden, TOLERANCE)
        for index, (value, reference) in enumerate(zip(maps, golden["stages"], strict=True)):
            assert_map(value, reference, f"stage {index}", TOLERANCE)
        for extra in golden["extra"]:
            logits = model(golden_image(*extra["input"]))
            assert_close(logits[-1, :16], extra["logits_last_image"], f"logits at {extra['input']}", TOLERANCE)
            assert_close(logits.norm(), extra["logits_norm"], f"norm of logits at {extra['input']}", TOLERANCE)


def joined(norms):
    """Return norms by parameter, those of one parameter there and several here, or the other way round, as one."""
    out = {}
    for key, norm in norms.items():
        key = re.sub(r"^(stages\.3\..*\.mixer)\.(?:q|kv)\.", r"\1.qkv.", key)
        key = key.replace(".cls_position", ".table")
        out[key] = math.hypot(out.get(key, 0.0), norm)
    return out


@pytest.mark.parametrize("name", ["soft_tiny", "softpp_tiny"])
def test_gradient(name, tmp_path):
    golden = load_golden("soft", name)
    model = load_file(name, tmp_path / "official.pth", {"state_dict_ema": official_state(golden)})
    image = golden_image(*golden["input"]).requires_grad_()
    logits = model(image)
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)))
    assert_close(image.grad.flatten()[:32], golden["grad"]["input_first32"], "gradient of the image", TOLERANCE)
    recorded = joined(rename(golden["grad"]["param_norms"], OFFICIAL_NAMES))
    ours = joined({key: parameter.grad.norm().item() for key, parameter in model.named_parameters()})
    assert recorded.keys() == ours.keys()
    for key, norm in recorded.items():
        assert_close(torch.tensor(ours[key]), norm, f"norm of the gradient of {key}", TOLERANCE)


@pytest.mark.parametrize("size", PARAMETERS)
@pytest.mark.parametrize("family", ["soft", "softpp"])
def test_variants(family, size):
    with torch.device("meta"):
        model = timm.create_model(f"{family}_{size}")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[size]
    mixers = [stage.blocks[0].mixer for stage in model.stages[:3]]
    assert [(mixer.ratio, mixer.local.kernel_size[0]) for mixer in mixers] == [(8, 9), (4, 5), (2, 3)]
    assert {mixer.normalized for mixer in mixers} == {family == "softpp"}


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("soft_nano").parameters()) < 1e6


def test_dropout_stands_for_stochastic_depth():
    """In the softmax-free stages."""
    model = timm.create_model("soft_nano", drop_path_rate=0.7)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = torch.linspace(0, 0.7, len(blocks)).tolist()
    for index, (block, rate) in enumerate(zip(blocks, rates, strict=True)):
        for drop in (block.drop_path1, block.drop_path2):
            assert isinstance(drop, torch.nn.Dropout) == (index < 6)
            assert (drop.p if index < 6 else drop.drop_prob) == pytest.approx(rate)


def test_set_input_size():
    model = timm.create_model("soft_nano", img_size=64).eval()
    image = golden_image([96, 32], 1)
    with torch.no_grad():
        expected = model(image)
        model.set_input_size((96, 32))
        torch.testing.assert_close(model(image), expected)
    assert model.stages[3].position.table.shape[:2] == (3, 1)


def test_our_own_checkpoint(tmp_path):
    model = timm.create_model("soft_nano").eval()
    again = load_file("soft_nano", tmp_path / "own.pth", {"state_dict": model.state_dict()})
    with torch.no_grad():
        assert torch.equal(again(golden_image(70, 1)), model(golden_image(70, 1)))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"ratios=\(2,\) must have 3 values for depths=\(1, 2, 3, 2\)"):
        timm.create_model("soft_nano", ratios=(2,))


def test_weights_without_a_link_say_where_they_are():
    with pytest.raises(RuntimeError, match=r"fetch the file from https://drive.google.com/file/d/1Isy5b9v"):
        timm.create_model("softpp_tiny", pretrained=True)
