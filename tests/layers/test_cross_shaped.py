"""CSwin's attention against the released modules and blocks, and its rules for maps that stripes do not divide."""

import json

import pytest
import torch
from neighborhood_cases import distance
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F

from saccade.layers import MixerBlock, build_core, build_mixer
from saccade.layers.cross_shaped import CrossShapedAttention, StripeAttention

from ..fill import GOLDENS, named_tensor, relative_error
from ..official_modules import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, random

CASES = {
    case["case"]: case
    for file in ("agent_attention_ops", "inline_attention_ops")
    for case in json.loads((GOLDENS / f"{file}.json").read_text())["cases"]
}
CORES = {"softmax": {}, "agent": {"agent_num": 4, "local": False}, "focused": {}, "inline": {}}
BLOCKS = {
    "host_block_cswin_softmax_r14_s7": ("softmax", 7, {}),
    "host_block_cswin_agent_r14": ("agent", None, {"agent_num": 49, "local": False}),
    "host_block_cswin_inline_r14": ("inline", None, {}),
}


def compare(case, out, x, parameters):
    """Compare the output and the gradients of input and parameters, under their official names, with a case."""
    assert list(out.shape) == case["output_shape"]
    assert relative_error(out.detach().flatten()[:64], case["output"]) < OUTPUT_TOLERANCE
    assert relative_error(out.detach().norm(), case["output_norm"]) < OUTPUT_TOLERANCE
    (out * random(case["output_shape"], case["cotangent_seed"])).sum().backward()
    assert relative_error(x.grad.flatten()[:32], case["grads"][0]["first"]) < GRADIENT_TOLERANCE
    assert parameters.keys() == case["param_grad_norms"].keys()
    for key, norm in case["param_grad_norms"].items():
        assert abs(parameters[key].grad.norm().item() - norm) <= GRADIENT_TOLERANCE * max(norm, 1.0), key


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("host_softmax_cswin")])
def test_released_softmax_branch(name):
    case = CASES[name]
    side, axis = case["kwargs"]["resolution"], {-1: None, 0: 1, 1: 0}[case["kwargs"]["idx"]]
    stripe = None if axis is None else case["kwargs"]["split_size"]
    branch = StripeAttention(build_core("softmax", 32, 2), axis, stripe)
    state = {key: named_tensor(key, shape) for key, shape in case["state"].items()}
    branch.load_state_dict({key.replace("get_v", "lepe"): value for key, value in state.items()})
    qkv = random(case["inputs"][0]["shape"], case["inputs"][0]["seed"]).requires_grad_()
    out = branch(*qkv.unflatten(2, (side, side))).flatten(1, 2)
    compare(case, out, qkv, {key.replace("lepe", "get_v"): p for key, p in branch.named_parameters()})


def official_name(key):
    """Return the official name of a block's parameter."""
    for ours, theirs in {"mixer.branches": "attns", "core.": "", "lepe": "get_v", "mixer.": ""}.items():
        key = key.replace(ours, theirs)
    return key


@pytest.mark.parametrize("name", BLOCKS)
def test_released_block(name):
    """Around the whole, what InLine's predictor reads too: the block's input before the norm."""
    case, (core, stripe, options) = CASES[name], BLOCKS[name]
    block = MixerBlock(32, CrossShapedAttention(32, 4, core, stripe, grid=14, **options), Mlp(32, 128))
    parameters = {official_name(key): p for key, p in block.named_parameters()}
    assert {key: list(p.shape) for key, p in parameters.items()} == case["state"]
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(named_tensor(key, case["state"][key]))
    x = random(case["inputs"][0]["shape"], case["inputs"][0]["seed"]).requires_grad_()
    compare(case, block(x.unflatten(1, (14, 14))).flatten(1, 2), x, parameters)


def randomised(core, stripe, grid):
    mixer = CrossShapedAttention(8, 2, core, stripe, grid=grid, **CORES[core]).double()
    for key, p in mixer.named_parameters():
        if p.dim() == 1 or "bias" in key or "core" in key:
            nn.init.normal_(p, std=0.3)
    return mixer


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 4), (7, 8), (9, 3)])
@pytest.mark.parametrize("core", CORES)
def test_stripes_are_maps_of_their_own(core, size):
    """Halves of the channels attend and are convolved in slices of the map, the last one narrower."""
    mixer = randomised(core, 3, size)
    x = random([2, *size, 8], 0).double()
    qkv = mixer.qkv(x)
    halves = []
    for half, (branch, along) in enumerate(zip(mixer.branches, (2, 1), strict=True)):
        q, k, v = (part[..., 4 * half : 4 * half + 4] for part in qkv.chunk(3, -1))
        mean = x.mean((1, 2))[:, 4 * half : 4 * half + 4]
        parts = []
        for maps in zip(*(part.split(3, along) for part in (q, k, v)), strict=True):
            grid = maps[0].shape[1:3]
            out = branch.core(*(part.flatten(1, 2) for part in maps), grid, mean=mean).unflatten(1, grid)
            parts.append(out + branch.lepe(maps[2]))
        halves.append(torch.cat(parts, along))
    assert distance(mixer(x), mixer.proj(torch.cat(halves, -1))) < 1e-12


def test_softmax_in_stripes_is_masked_attention():
    mixer = randomised("softmax", 3, 7)
    x = random([1, 7, 5, 8], 0).double()
    q, k, v = mixer.qkv(x).flatten(1, 2).chunk(3, -1)
    rows = torch.arange(35).div(5, rounding_mode="floor").div(3, rounding_mode="floor")
    near = rows[:, None] == rows
    lying = F.scaled_dot_product_attention(*(part[..., 4:] for part in (q, k, v)), attn_mask=near)
    branch = mixer.branches[1]
    out = branch(*(part[..., 4:].unflatten(1, (7, 5)) for part in (q, k, v)))
    nn.init.zeros_(branch.lepe.weight)
    nn.init.zeros_(branch.lepe.bias)
    assert distance(branch(*(part[..., 4:].unflatten(1, (7, 5)) for part in (q, k, v))).flatten(1, 2), lying) < 1e-12
    assert distance(out.flatten(1, 2), lying) > 1e-3


@pytest.mark.parametrize("stripe", [None, 2])
@pytest.mark.parametrize("core", CORES)
def test_other_sizes_need_no_rebuilding(core, stripe):
    mixer = randomised(core, stripe, (6, 4))
    x = random([2, 9, 10, 8], 0).double()
    before = mixer(x)
    mixer.set_grid((9, 10))
    assert distance(mixer(x), before) < 1e-12


@pytest.mark.parametrize("stripe", [None, 2])
@pytest.mark.parametrize("core", CORES)
def test_export_for_any_batch(core, stripe):
    mixer = CrossShapedAttention(8, 2, core, stripe, grid=5, **CORES[core])
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(mixer, (random([2, 5, 5, 8], 0),), dynamic_shapes=({0: batch},)).module()
    x = random([3, 5, 5, 8], 1)
    torch.testing.assert_close(exported(x), mixer(x))


def test_mean_of_the_block_input():
    """Without one it is the mean of what is mixed; softmax attention reads none."""
    x, other = random([2, 4, 5, 8], 0), random([2, 4, 5, 8], 1)
    for core in CORES:
        mixer = build_mixer("cross_shaped", 8, 2, core=core, stripe=3, grid=4, **CORES[core])
        assert torch.equal(mixer(x, x), mixer(x))
        assert torch.equal(mixer(x, other), mixer(x)) == (core != "inline")


@pytest.mark.parametrize(("num_heads", "heads"), [(1, [1, 1]), (3, [2, 1]), (5, [3, 2]), (6, [3, 3])])
def test_odd_numbers_of_heads(num_heads, heads):
    """Heads keep their width, but for a single one; the stripes see all channels between them."""
    mixer = CrossShapedAttention(60, num_heads, "inline", stripe=2, grid=4)
    assert [branch.core.num_heads for branch in mixer.branches] == heads
    widths = [branch.core.dim // branch.core.num_heads for branch in mixer.branches]
    assert widths == [60 // sum(heads)] * 2
    assert mixer(torch.randn(2, 5, 4, 60)).shape == (2, 5, 4, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stripe": 0}, "stripe=0 must be at least 1"),
        ({"num_heads": 3}, "dim=8 must be a multiple of num_heads=3, and of 2"),
        ({"dim": 9, "num_heads": 1}, "dim=9 must be a multiple of num_heads=1, and of 2"),
        ({"core": "nope"}, "core 'nope' is unknown"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossShapedAttention(**{"dim": 8, "num_heads": 2, **arguments})
