"""Which depthwise convolutions `saccade.accelerate` swaps: those of shapes that were measured to win."""

import copy

import pytest
import timm
import torch
from torch import nn

import saccade
from saccade.models.accelerate import depthwise, measured

SEVEN = ((7, 7), (1, 1), torch.float32, "cpu")
# shape [C, H, W] -> gain forward, gain forward and backward
GAINS = {SEVEN: {(8, 16, 16): (2.0, 3.0), (8, 4, 4): (0.5, 1.5), (64, 16, 16): (0.5, 0.5)}}


@pytest.fixture
def calls(monkeypatch):
    """Put a measured table in place, and list the shapes that our operator is called for."""
    monkeypatch.setattr(measured, "DEPTHWISE_GAINS", GAINS)
    shapes, operator = [], depthwise.depthwise_conv2d

    def recorded(x, *args):
        shapes.append(tuple(x.shape[1:]))
        return operator(x, *args)

    monkeypatch.setattr(depthwise, "depthwise_conv2d", recorded)
    return shapes


def convolution(channels: int = 8, kernel: int | tuple = 7, **kwargs) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, kernel, **{"padding": "same", "groups": channels, **kwargs})


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "gradients", "ours"),
    [
        ((8, 16, 16), False, True),
        ((8, 16, 16), True, True),
        ((8, 14, 15), False, True),
        ((8, 5, 4), False, False),
        ((8, 5, 4), True, True),
    ],
)
def test_runs_where_it_wins(calls, shape, gradients, ours):
    module = convolution()
    faster = saccade.accelerate(copy.deepcopy(module), report=None)
    assert type(faster) is depthwise.Conv2d
    x = channels_last(2, *shape)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(faster(x), module(x))
    assert calls == ([(shape[1], shape[2], shape[0])] if ours else [])


def test_other_layouts_and_dtypes_run_torch(calls):
    faster = saccade.accelerate(convolution(), report=None)
    faster(torch.randn(2, 8, 16, 16))
    faster(torch.randn(8, 16, 16))
    copy.deepcopy(faster).double()(channels_last(2, 8, 16, 16).double())
    with torch.autocast("cpu", torch.bfloat16):
        faster(channels_last(2, 8, 16, 16))
    assert calls == []


def test_gradients_stay(calls):
    module = convolution()
    faster = saccade.accelerate(copy.deepcopy(module), report=None)
    x = channels_last(2, 8, 16, 16)
    for one in (module, faster):
        one(x).square().sum().backward()
    assert calls
    torch.testing.assert_close(faster.weight.grad, module.weight.grad)
    torch.testing.assert_close(faster.bias.grad, module.bias.grad)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (convolution(kernel=9), "no gain measured for 9x9 kernels"),
        (convolution(kernel=(1, 11)), "no gain measured for 1x11 kernels"),
        (convolution(dilation=2), "no gain measured for 7x7 kernels"),
        (convolution(kernel=5), "nothing to swap"),
        (convolution(padding=0), "nothing to swap"),
        (convolution(padding=3, stride=2), "nothing to swap"),
        (convolution(padding=3, padding_mode="reflect"), "nothing to swap"),
        (convolution(groups=4), "nothing to swap"),
    ],
    ids=str,
)
def test_others_stay(calls, module, reason):
    told = []
    saccade.accelerate(module, report=told.append)
    assert type(module) is nn.Conv2d
    assert reason in str(*told)


def test_convnext_compiles(calls):
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), num_classes=5).eval()
    model.to(memory_format=torch.channels_last)
    faster = saccade.accelerate(copy.deepcopy(model), report=None)
    x = channels_last(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(faster(x), expected)
        assert calls == [(16, 16, 8), (8, 8, 16)]
        torch.testing.assert_close(torch.compile(faster, fullgraph=True, backend="aot_eager")(x), expected)


def test_a_swapped_modulation_keeps_its_convolutions(calls):
    model = timm.models.focalnet.FocalNet(embed_dim=8, depths=(1,), focal_levels=(2,), focal_windows=(7,))
    saccade.accelerate(model, report=None)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert set(kinds) == {nn.Conv2d}
