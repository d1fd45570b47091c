"""Dynamic depthwise convolution against torch's convolution of each sample, and as an operator of torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighborhood_cases import distance
from operator_contract import Call, OperatorContract
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.dynamic_depthwise import dynamic_depthwise_conv2d

SHAPES = [((2, 4, 5, 3), (3, 3)), ((3, 1, 2, 2), (1, 5))]


def draw(shape, kernel, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(shape[0], shape[3], *kernel, generator=generator, dtype=torch.float64).to(dtype)
    return {"x": x.requires_grad_(), "weight": weight.requires_grad_()}


def call(shape, kernel):
    return Call(f"{shape}-{kernel}", dynamic_depthwise_conv2d, lambda dtype=torch.float64: draw(shape, kernel, dtype))


@pytest.mark.parametrize("problem", [call(*shapes) for shapes in SHAPES], ids=str)
class TestContract(OperatorContract):
    operator = "dynamic_depthwise_conv2d"


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 6) for _ in range(4))),
    kernel=st.tuples(*(st.sampled_from((1, 3, 5)) for _ in range(2))),
    seed=st.integers(0, 999),
)
def test_equals_a_convolution_of_each_sample(backend, shape, kernel, seed):
    tensors = draw(shape, kernel, seed=seed)
    with saccade.backend(backend):
        out = dynamic_depthwise_conv2d(**tensors)
        found = torch.autograd.grad(out.square().sum(), list(tensors.values()))
    truth = torch.stack(
        [
            F.conv2d(x.permute(2, 0, 1), weight.unsqueeze(1), padding="same", groups=len(weight)).permute(1, 2, 0)
            for x, weight in zip(tensors["x"], tensors["weight"], strict=True)
        ]
    )
    true = torch.autograd.grad(truth.square().sum(), list(tensors.values()))
    assert distance(out, truth) < 1e-12
    assert all(distance(value, reference) < 1e-12 for value, reference in zip(found, true, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_stays_near_float64(dtype, tolerance):
    exact = draw((2, 9, 8, 16), (3, 3))
    out = dynamic_depthwise_conv2d(exact["x"].to(dtype), exact["weight"].float())
    assert out.dtype == dtype
    assert distance(out, dynamic_depthwise_conv2d(**exact)) < tolerance


def test_flops_are_counted():
    with FlopCounterMode(display=False) as counter:
        out = dynamic_depthwise_conv2d(**draw((2, 4, 5, 3), (3, 5), torch.float32))
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 2 * 4 * 5 * 3 * 15
    assert counter.get_total_flops() == 3 * forward


def test_explain():
    told = saccade.explain(dynamic_depthwise_conv2d, **draw((2, 4, 5, 3), (3, 3)))
    assert told.startswith("-> forward  blocked   runs")


MAP = torch.zeros(2, 8, 9, 4)
KERNEL = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": MAP[0]}, r"x has shape \[8, 9, 4\]; valid: \[B, H, W, C\]"),
        ({"x": MAP.long()}, r"x has dtype torch.int64; valid: float16"),
        ({"weight": KERNEL[0]}, r"weight has shape \[4, 3, 3\]; valid: \[B, C, kh, kw\] with odd kh and kw"),
        ({"weight": KERNEL[..., :2]}, r"weight has shape \[2, 4, 3, 2\]; valid: \[B, C, kh, kw\] with odd"),
        ({"weight": KERNEL[:1]}, r"weight has shape \[1, 4, 3, 3\]; valid: \[2, 4, 3, 3\]"),
        ({"weight": KERNEL.half()}, r"weight has dtype torch.float16; valid: that of x, torch.float32"),
        ({"weight": KERNEL.to("meta")}, r"weight is on meta; valid: the device of x, cpu"),
    ],
)
def test_bad_input_is_told_in_one_error(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        dynamic_depthwise_conv2d(**{"x": MAP, "weight": KERNEL, **arguments})
