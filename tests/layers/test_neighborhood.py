import json

import pytest
import torch
from torch.nn import functional as F

import saccade.layers.neighborhood
from saccade.layers import NeighborhoodAttention

from ..fill import GOLDENS, named_tensor, relative_error

CASES = json.loads((GOLDENS / "neighborhood_module.json").read_text())["cases"]


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["seed"]))
def test_released_module(case):
    """Output and gradients of the module the released models were trained with, padding included."""
    layer = NeighborhoodAttention(case["dim"], case["heads"], case["kernel_size"], case["dilation"])
    layer.load_state_dict({key: named_tensor(key, list(value.shape)) for key, value in layer.state_dict().items()})
    x = random(case["x_shape"], case["seed"]).requires_grad_()
    out = layer(x)
    assert relative_error(out.detach().flatten()[:64], case["out"]) < 2e-6
    assert relative_error(out.detach().norm(), case["out_norm"]) < 2e-6
    (out * random(out.shape, case["seed"] + 1000)).sum().backward()
    gradients = {"x": x.grad, **{key: p.grad for key, p in layer.named_parameters()}}
    for key, reference in case["grads"].items():
        assert relative_error(gradients[key].flatten()[:32], reference["first"]) < 5e-6, key
        assert relative_error(gradients[key].norm(), reference["norm"]) < 5e-6, key


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (5, 7), (6, 13)])
def test_padding_is_zeros_before_the_projection(size):
    """A small map gives what its zero-padded version gives, cropped; the bias of qkv reaches the padding."""
    layer = NeighborhoodAttention(8, 2, window=3, dilation=(2, 3))
    x = random((2, *size, 8), 0)
    padded = F.pad(x, (0, 0, 0, max(9 - size[1], 0), 0, max(6 - size[0], 0)))
    torch.testing.assert_close(layer(x), layer(padded)[:, : size[0], : size[1]])
    before = layer(x)
    torch.nn.init.ones_(layer.qkv.bias)
    assert not torch.allclose(layer(x), before)


def test_full_window_is_plain_attention():
    layer = NeighborhoodAttention(16, 2, window=5, rel_pos_bias=False)
    x = random((2, 5, 5, 16), 1)
    q, k, v = layer.qkv(x).reshape(2, 25, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 5, 16))
    torch.testing.assert_close(layer(x), expected)


def test_options_reach_the_kernel(monkeypatch):
    calls = []

    def record(qkv, *args, **kwargs):
        calls.append((qkv, args, kwargs))
        return qkv[..., 2, :, :]

    monkeypatch.setattr(saccade.layers.neighborhood, "neighborhood_attention_packed", record)
    layer = NeighborhoodAttention(8, 2, (3, 4), (1, 2), stride=(2, 1), causal=(True, False), rel_pos_bias=False)
    layer(random((1, 8, 9, 8), 2))
    qkv, args, kwargs = calls[0]
    assert args == ((3, 4),)
    assert kwargs == {"stride": (2, 1), "dilation": (1, 2), "causal": (True, False), "bias": None}
    assert qkv.shape == (1, 8, 9, 3, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 must be a multiple of num_heads=3"),
        ({"window": 6}, "window=6.*needs odd windows"),
        ({"causal": True}, "causal=True.*no causal axis"),
        ({"window": 0}, "window=0.*at least 1"),
        ({"dilation": (1, 0)}, r"dilation=\(1, 0\).*at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention(**{"dim": 8, "num_heads": 2, **arguments})
