"""The bodies that carry any mixer: against timm's models where theirs is softmax attention, and at any size."""

import pytest
import timm
import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from saccade.layers import MIXERS, WindowAttention
from saccade.layers.agent import AgentCore
from saccade.layers.inline import InLineCore
from saccade.layers.softmax import SoftmaxCore
from saccade.models.checkpoint import rename
from saccade.models.hosts.cswin import CSwin
from saccade.models.hosts.deit import DeiT
from saccade.models.hosts.letters import mixers_of_blocks
from saccade.models.hosts.pvt import PVT
from saccade.models.hosts.pvt_v2 import PVTv2
from saccade.models.hosts.swin import Swin
from saccade.models.leaplab import checkpoint_filter_fn

SMALL = {"embed_dims": (8, 16, 20, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 5, 8)}
CFG = {"first_conv": "stem.conv", "classifier": "head.fc"}
PVT_V2_NAMES = [
    (r"^patch_embed\.", "stem."),
    (r"^(stem|stages\.\d\.downsample)\.proj\.", r"\1.conv."),
    (r"\.attn\.", ".mixer."),
    (r"^head\.", "head.fc."),
]


def randomise(model):
    """Give every parameter, biases and position tables too, values that matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / max(p[0].numel(), 10) ** 0.5)
    return model.eval()


def image(height, width):
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_deit_is_timms_vit():
    """With softmax attention in every block, also where the map is not square."""
    options = {"img_size": (96, 64), "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
    theirs = randomise(VisionTransformer(**options).double())
    ours = DeiT("agent", 48, 3, depth=3, mixer_depth=0, img_size=(96, 64), num_classes=10).double().eval()
    ours.pretrained_cfg = CFG
    state = theirs.state_dict()
    positions = state.pop("pos_embed")
    state["cls_position"], state["position.table"] = positions[:, :1], positions[0, 1:].unflatten(0, (6, 4))
    ours.load_state_dict(checkpoint_filter_fn(state, ours))
    x = image(96, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-9, atol=1e-11)
        final, maps = ours.forward_intermediates(x, indices=(0, 2), norm=True)
        expected, their_maps = theirs.forward_intermediates(x, indices=(0, 2), norm=True)
        torch.testing.assert_close([final[:, 1:], *maps], [expected[:, 1:], *their_maps], rtol=1e-9, atol=1e-11)
        for pool in ("avg", "max", "avgmax"):
            ours.reset_classifier(0, pool)
            pooled = theirs.pool(theirs.forward_features(x), pool)
            torch.testing.assert_close(ours(x), pooled, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (224, 72)])
def test_pvt_v2_is_timms(size):
    """With softmax attention and spatial reduction in every stage."""
    options = {**SMALL, "num_classes": 10}
    options["mlp_ratios"], options["sr_ratios"] = (8, 8, 4, 4), (8, 4, 2, 1)
    theirs = randomise(PyramidVisionTransformerV2(**options).double())
    ours = PVTv2("focused", attn_type="SSSS", num_classes=10, **SMALL).double().eval()
    ours.load_state_dict(rename(theirs.state_dict(), PVT_V2_NAMES))
    with torch.no_grad():
        torch.testing.assert_close(ours(image(*size)), theirs(image(*size)), rtol=1e-9, atol=1e-11)


def test_swin_is_timms():
    """With softmax attention in every block, also where the map is not square."""
    options = {"img_size": (64, 128), "embed_dim": 8, "depths": (2, 2, 3, 2), "num_heads": (1, 2, 2, 4)}
    theirs = randomise(SwinTransformer(**options, window_size=2, num_classes=10).double())
    ours = Swin("agent", attn_type="BBBB", window=2, num_classes=10, **options).double().eval()
    ours.pretrained_cfg = CFG
    # Merging is theirs at the start of a stage already.
    state = rename(theirs.state_dict(), [(r"^layers\.", "stages."), (r"^head\.fc\.", "head.")])
    ours.load_state_dict(checkpoint_filter_fn(state, ours))
    x = image(64, 128)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-11)
        _, maps = ours.forward_intermediates(x)
        _, expected = theirs.forward_intermediates(x)
        torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("LLSS", ["mm", "mmm", "sss", "s"]),
        ("AAMB2", ["mm", "mmm", "mms", "s"]),
        ("IMIS1", ["mm", "mss", "mmm", "s"]),
        ("BBBB", ["ss", "sss", "sss", "s"]),
    ],
)
def test_letters(letters, expected):
    found = mixers_of_blocks(letters, (2, 3, 3, 1), ["mixer"] * 4)
    assert ["".join(name[0] for name in stage) for stage in found] == expected


@pytest.mark.parametrize("letters", ["", "LLS", "LLSX", "AAMB", "2AMB", "LLSSL"])
def test_bad_letters(letters):
    with pytest.raises(ValueError, match=f"attn_type='{letters}' must be 4 letters"):
        mixers_of_blocks(letters, (2, 2, 6, 2), ["mixer"] * 4)


def test_stages_may_have_other_mixers():
    """The mixer reads what `mixer_sr_ratios` say of its keys, softmax attention what `sr_ratios` say."""
    model = PVT("inline", attn_type="IMSS1", mixer_sr_ratios=(4, 2, 1, 1), img_size=64, **SMALL)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [type(block.mixer.core) for block in blocks] == [InLineCore] * 2 + [SoftmaxCore] * 3
    assert [block.mixer.sr_ratio for block in blocks] == [4, 2, 4, 2, 1]
    for size in ((64, 64), (33, 97), (1, 1)):
        out, maps = model.forward_intermediates(torch.randn(1, 3, *size))
        assert out.isfinite().all()
        assert all(value.isfinite().all() for value in maps)


def test_swin_of_mixed_stages():
    """Blocks of the mixer see the whole map; of those with windows, every other block of the stage shifts them."""
    model = Swin("agent", attn_type="AAMB2", depths=(2, 2, 5, 2), embed_dim=12, window=4, mixer_kwargs={"agent_num": 9})
    mixers = [[block.mixer for block in stage.blocks] for stage in model.stages]
    of_windows = [[isinstance(mixer, WindowAttention) for mixer in stage] for stage in mixers]
    assert of_windows == [[False] * 2, [False] * 2, [False] * 2 + [True] * 3, [True] * 2]
    assert [mixer.shift for mixer in mixers[2][2:] + mixers[3]] == [False, True, False, False, True]
    assert {mixer.window for mixer in mixers[2][2:] + mixers[3]} == {(4, 4)}
    assert isinstance(mixers[2][1].core, AgentCore) and mixers[2][1].core.ha_bias.shape[2] == 14
    for size in ((64, 64), (33, 97), (1, 1)):
        assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_windows_of_dense_backbones():
    """They pad and shift maps that a classifier takes for one window."""
    for options, fit in (({}, True), ({"out_norms": (1,)}, False), ({"out_norms": True, "fit": True}, True)):
        model = Swin("inline", attn_type="IIIS", embed_dim=12, **options)
        assert [block.mixer.fit for block in model.stages[3].blocks] == [fit] * 2


@pytest.mark.parametrize("host", [PVT, Swin])
@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_pyramids_carry_any_mixer(mixer, host):
    """Each gets of what the body offers what it takes."""
    model = host(mixer, attn_type="LLMS1", depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 4), img_size=64)
    for size in ((64, 64), (33, 97)):
        assert model(torch.randn(1, 3, *size)).isfinite().all()


@pytest.mark.parametrize("mixer", ["agent", "focused", "inline"])
def test_cswin_carries_any_core(mixer):
    """In stripes, where the released modules of two of the three fail, in the whole map, and in mixed stages."""
    sizes = {"depths": (1, 3, 1, 2), "num_heads": (2, 2, 4, 4), "embed_dim": 8}
    model = CSwin(mixer, attn_type="LMLM1", mixer_stripes=(1, 3, None, 2), img_size=64, **sizes)
    branches = [[block.mixer.branches for block in stage.blocks] for stage in model.stages]
    assert [[len(part) for part in stage] for stage in branches] == [[2], [2, 2, 2], [1], [2, 1]]
    assert [[part[0].stripe for part in stage] for stage in branches] == [[1], [3, 2, 2], [None], [2, None]]
    softmax = [[isinstance(part[0].core, SoftmaxCore) for part in stage] for stage in branches]
    assert softmax == [[False], [False, True, True], [False], [False, True]]
    for size in ((64, 64), (33, 97), (1, 1)):
        x = torch.randn(2, 3, *size)
        out, maps = model.forward_intermediates(x)
        assert out.isfinite().all()
        assert all(value.isfinite().all() for value in maps)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": (1, 2, 5)}, r"num_heads=\(1, 2, 5\) must be one for each stage of depths=\(2, 2, 2, 2\)"),
        ({"attn_type": "AAB"}, "attn_type='AAB' must be 4 letters"),
        ({"mixer_kwargs": [{}, {}]}, "mixer_kwargs=.* must be one mapping, or a sequence of one for each of 4 stages"),
    ],
)
def test_bad_options_of_stages(options, message):
    with pytest.raises(ValueError, match=message):
        PVT("agent", **options)
    with pytest.raises(ValueError, match=message):
        Swin("agent", **{"depths": (2, 2, 2, 2), **options})
    with pytest.raises(ValueError, match=message):
        CSwin("agent", **{"depths": (2, 2, 2, 2), **options})


@pytest.mark.parametrize(
    "name",
    [
        "agent_cswin_tiny",
        "agent_deit_tiny",
        "agent_pvt_tiny",
        "flatten_pvt_tiny",
        "flatten_pvt_v2_b0",
        "flatten_swin_nano",
        "inline_pvt_nano",
    ],
)
def test_other_sizes_need_no_rebuilding(name):
    """What a model computes at another size is what it computes after its tables are resampled for that size."""
    model = randomise(timm.create_model(name, num_classes=10).double())
    x = image(104, 168)
    with torch.no_grad():
        before = model(x)
        count = sum(p.numel() for p in model.parameters())
        model.set_input_size((104, 168))
        assert sum(p.numel() for p in model.parameters()) != count
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-11)
        model.set_input_size(model.pretrained_cfg["input_size"][1:])
        assert sum(p.numel() for p in model.parameters()) == count


def test_positions_follow_the_map_not_its_count():
    """A map with as many tokens as the table has, but of another shape, gets resampled positions."""
    model = PVT("inline", img_size=32, **SMALL)
    table = model.stages[0].position
    with torch.no_grad():
        table.table.copy_(torch.arange(8.0)[:, None, None].expand(8, 8, 8))
        positions = table(torch.zeros(1, 4, 16, 8))
    torch.testing.assert_close(positions[0, :, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    assert torch.equal(positions, positions[:, :, :1].expand_as(positions))


def test_decay():
    """DeiT's positions and class token are exempt, and Swin's biases; PVT's and the mixers' tables are not."""
    deit = timm.create_model("agent_deit_nano")
    assert deit.no_weight_decay() == {"cls_token", "cls_position", "position.table"}
    assert timm.create_model("inline_pvt_nano").no_weight_decay() == set()
    blocks = [*(f"stages.2.blocks.{i}" for i in range(4)), "stages.3.blocks.0"]
    assert timm.create_model("flatten_swin_nano").no_weight_decay() == {f"{block}.mixer.rpb" for block in blocks}


def test_norms():
    """Outputs with random weights hardly see an epsilon."""
    embeds = {"stem.norm", *(f"stages.{i}.downsample.norm" for i in range(1, 4))}
    for name in ("agent_deit_nano", "inline_pvt_nano", "flatten_pvt_v2_b0"):
        for key, module in timm.create_model(name).named_modules():
            if isinstance(module, nn.LayerNorm):
                assert module.eps == (1e-5 if key in embeds else 1e-6), key
    for model in (timm.create_model("flatten_swin_nano"), CSwin("inline", embed_dim=8)):
        assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


def test_initialisation_of_pvt_v2():
    """Convolutions are normal by their fan-out, linear layers of std 0.02; the mixer's convolution too."""
    torch.manual_seed(0)
    model = timm.create_model("flatten_pvt_v2_b1")
    block = model.stages[2].blocks[0]
    stds = {
        model.stem.conv: (2 / (49 * 64)) ** 0.5,
        model.stages[1].downsample.conv: (2 / (9 * 128)) ** 0.5,
        block.mlp.dwconv: (2 / 9) ** 0.5,
        block.mixer.core.dwc: (2 / 25) ** 0.5,
        block.mlp.fc1: 0.02,
        block.mixer.kv: 0.02,
    }
    for module, std in stds.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.07)
        assert module.bias.count_nonzero() == 0
