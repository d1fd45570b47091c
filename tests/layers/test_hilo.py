"""HiLo against the released module, in its classification and its dense version, and its rule for padding."""

import json

import pytest
import torch
from torch.nn import functional as F

import saccade.layers.hilo
from saccade.layers import HiLo

from ..fill import GOLDENS
from ..official_modules import assert_gradients, assert_output, cotangent, fill_by_name, random

CASES = [case for case in json.loads((GOLDENS / "hilo_ops.json").read_text())["cases"] if case["module"] == "HiLo"]
OURS = {"window_size": "window", "qk_scale": "scale"}


def build(case):
    """Build our layer with the official arguments; only the dense version pads."""
    kwargs = {OURS.get(key, key): value for key, value in case["kwargs"].items()}
    return HiLo(**kwargs, pad="detection" in case["source"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_released_module(case):
    layer = build(case)
    assert {key: list(value.shape) for key, value in layer.state_dict().items()} == case["state"]
    assert (layer.low_heads, layer.high_heads) == (case["heads"]["lo"], case["heads"]["hi"])
    fill_by_name(layer)
    x = random(case["input"]["shape"], case["input"]["seed"]).requires_grad_()
    maps = x.unflatten(1, (case["H"], case["W"]))
    if "error" in case:
        with pytest.raises(ValueError, match=r"window=2 on axis 0 does not divide the map's 7 tokens"):
            layer(maps)
        return
    out = layer(maps).flatten(1, 2)
    assert_output(out, case)
    (out * cotangent(case)).sum().backward()
    assert_gradients(case, x.grad, dict(layer.named_parameters()))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (4, 7)])
def test_padding_is_zeros_before_the_projections(size, alpha):
    """A small map gives what its zero-padded version gives, cropped."""
    layer = HiLo(8, 2, window=4, alpha=alpha)
    torch.nn.init.normal_((layer.h_qkv if alpha == 0 else layer.l_kv).bias)
    x = random((2, *size, 8), 0)
    padded = F.pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4))
    torch.testing.assert_close(layer(x), layer(padded)[:, : size[0], : size[1]])


def test_window_one_is_plain_attention():
    layer = HiLo(16, 2, window=1, alpha=0.3)
    x = random((2, 5, 3, 16), 1)
    q = layer.l_q(x).reshape(2, 15, 2, 8).transpose(1, 2)
    k, v = layer.l_kv(x).reshape(2, 15, 2, 2, 8).permute(2, 0, 3, 1, 4)
    expected = layer.l_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 3, 16))
    torch.testing.assert_close(layer(x), expected)


def test_high_heads_read_one_packed_projection_in_place(monkeypatch):
    calls = []
    monkeypatch.setattr(saccade.layers.hilo, "window_attention", lambda q, k, v, *a, **b: calls.append((q, k, v)) or v)
    HiLo(16, 4, window=2, alpha=0.25)(random((1, 8, 6, 16), 2))
    q, k, v = calls[0]
    assert q.shape == (1, 8, 6, 3, 4)
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 must be a multiple of num_heads=3"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"alpha": 1.5}, "alpha=1.5 must be from 0 to 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HiLo(**{"dim": 8, "num_heads": 2, **arguments})
