"""Window attention against the released blocks and timm's Swin, and its rules for maps that do not fit."""

import json

import pytest
import torch
from neighborhood_cases import distance
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F

from saccade.layers import MixerBlock, WindowAttention, build_mixer

from ..fill import GOLDENS, named_tensor, relative_error
from ..official_modules import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, random

CASES = {
    case["case"]: case
    for file in ("agent_attention_ops", "inline_attention_ops")
    for case in json.loads((GOLDENS / f"{file}.json").read_text())["cases"]
}


def block(mixer, eps):
    return MixerBlock(32, mixer, Mlp(32, 128), norm=lambda dim: nn.LayerNorm(dim, eps))


BLOCKS = {
    "host_softmax_swin_w7": lambda: WindowAttention(32, 2),
    "host_softmax_pvt_8_sr2": lambda: build_mixer("softmax", 32, 2, sr_ratio=2),
    "host_softmax_pvt_7_sr1": lambda: build_mixer("softmax", 32, 2, sr_ratio=1),
    "host_block_swin_softmax_r14_w7_shift3": lambda: block(WindowAttention(32, 2, shift=True), 1e-5),
    "host_block_swin_softmax_r14_w7_shift0": lambda: block(WindowAttention(32, 2), 1e-5),
    "host_block_swin_agent_r14": lambda: block(build_mixer("agent", 32, 2, agent_num=49), 1e-5),
    "host_block_pvt_inline_8x8": lambda: block(build_mixer("inline", 32, 2, sr_ratio=1), 1e-5),
}
PROJECTIONS = {"qkv", "q", "kv", "proj", "sr", "norm"}


def our_name(key, in_core):
    """Return our name of an official parameter."""
    key = key.replace("relative_position_bias_table", "rpb")
    if not key.startswith("attn."):
        return key
    _, part, *rest = key.split(".")
    return ".".join(("mixer", *(["core"] if in_core and part not in PROJECTIONS else []), part, *rest))


@pytest.mark.parametrize("name", BLOCKS)
def test_released_module(name):
    case, module = CASES[name], BLOCKS[name]()
    mixer = getattr(module, "mixer", module)
    names = {key: our_name(key, hasattr(mixer, "core")) for key in case["state"] if key not in case["buffers"]}
    holder = getattr(mixer, "core", mixer)
    state = {}
    for key, ours in names.items():
        table = named_tensor(key, case["state"][key])
        state[ours] = holder.resized(ours.split(".")[-1], table) if hasattr(holder, "resized") else table
    module.load_state_dict(state)
    x = random(case["inputs"][0]["shape"], case["inputs"][0]["seed"]).requires_grad_()
    side = round(x.shape[1] ** 0.5)
    out = module(x.unflatten(1, (side, side))).flatten(1, 2)
    assert relative_error(out.detach().flatten()[:64], case["output"]) < OUTPUT_TOLERANCE
    assert relative_error(out.detach().norm(), case["output_norm"]) < OUTPUT_TOLERANCE
    (out * random(case["output_shape"], case["cotangent_seed"])).sum().backward()
    assert relative_error(x.grad.flatten()[:32], case["grads"][0]["first"]) < GRADIENT_TOLERANCE
    parameters = dict(module.named_parameters())
    for key, norm in case["param_grad_norms"].items():
        assert abs(parameters[names[key]].grad.norm().item() - norm) <= GRADIENT_TOLERANCE * max(norm, 1.0), key


def plain(layer, x, windows, shift):
    """Attend by a mask over all pairs of a padded map, whose tokens know the map's window they are in."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % windows[1], 0, -height % windows[0]))
    rows, columns = x.shape[1:3]
    # Shifted, the first window of an axis is what is left over at its start.
    places = [
        (torch.arange(length) - step).div(extent, rounding_mode="floor")
        for length, step, extent in zip((rows, columns), shift, windows, strict=True)
    ]
    home = torch.stack(torch.meshgrid(*places, indexing="ij"), -1).flatten(0, 1)
    at = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).flatten(0, 1)
    q, k, v = layer.qkv(x).flatten(1, 2).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    offset = at[None] - at[:, None] + torch.tensor(layer.window) - 1
    limits = torch.tensor(layer.rpb.shape[1:]) - 1
    near = (home[:, None] == home[None]).all(-1)
    offset = offset.clamp_min(0).minimum(limits)
    bias = layer.rpb[:, offset[..., 0], offset[..., 1]].masked_fill(~near, float("-inf"))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(-2)
    return layer.proj(out.unflatten(1, (rows, columns))[:, :height, :width])


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 10), (5, 4), (8, 9), (12, 8)])
def test_equals_a_mask_over_all_pairs(size, fit, shift):
    """On maps that are smaller than a window, a multiple of it, and neither."""
    layer = WindowAttention(8, 2, window=4, shift=shift, fit=fit).double()
    nn.init.normal_(layer.rpb)
    nn.init.normal_(layer.qkv.bias)
    x = random([2, *size, 8], 0).double()
    alone = [fit and length <= 4 for length in size]
    windows = [length if single else 4 for length, single in zip(size, alone, strict=True)]
    steps = [2 if shift and not single else 0 for single in alone]
    assert distance(layer(x), plain(layer, x, windows, steps)) < 1e-12


def test_timms_swin():
    from timm.models.swin_transformer import SwinTransformerBlock

    theirs = SwinTransformerBlock(12, (8, 8), num_heads=3, window_size=4, shift_size=2).double().eval()
    nn.init.normal_(theirs.attn.relative_position_bias_table)
    ours = WindowAttention(12, 3, window=4, shift=True).double()
    state = {key: x for key, x in theirs.attn.state_dict().items() if "relative" not in key}
    ours.load_state_dict({**state, "rpb": ours.resized("rpb", theirs.attn.relative_position_bias_table)})
    x = random([2, 8, 8, 12], 0).double()
    assert distance(ours(x), theirs._attn(x)) < 1e-12


def test_a_table_of_another_window():
    layer = WindowAttention(8, 2, window=(4, 6))
    assert layer.resized("rpb", torch.zeros(169, 2)).shape == layer.rpb.shape == (2, 7, 11)
    same = random([2, 7, 11], 0)
    assert layer.resized("rpb", same) is same
    bare = WindowAttention(8, 2, window=4, rel_pos_bias=False)
    assert bare(random([1, 5, 6, 8], 0)).shape == (1, 5, 6, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dim": 9}, "dim=9 must be a multiple of num_heads=2"), ({"window": 0}, "window=0 must be at least 1")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention(**{"dim": 8, "num_heads": 2, **arguments})
