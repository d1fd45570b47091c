"""Window attention, depthwise convolution, large kernel attention and focal modulation on a GPU, and what all share."""

import agent_cases
import focal_cases
import large_kernel_cases
import linear_cases
import pytest
import torch
import window_cases
from neighborhood_cases import distance

import saccade
from saccade.kernels.batch_norm import batch_norm
from saccade.kernels.window import window_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def window(window, counts, bias=True, mask=None, heads=2, dim=32, value_dim=32):
    case = window_cases.Case(window, counts, bias, mask, 4, heads, dim, value_dim, seed=0)
    names = ("q", "k", "v", "bias", "mask")
    tensors = {name: x for name, x in zip(names, case.tensors(), strict=True) if x is not None}

    def ours(q, k, v, bias=None, mask=None):
        out, lse = window_attention(q, k, v, window, bias=bias, mask=mask, scale=0.2, return_lse=True)
        return out, lse.masked_fill(lse.isinf(), 0)

    return ours, tensors


def convolution(name, shape, kernel=(5, 5), dilated_kernel=(7, 7), dilation=(3, 3), bias=True, add=False, **options):
    case = large_kernel_cases.Case(shape, kernel, dilated_kernel, dilation, bias, seed=0)
    operator = large_kernel_cases.widest(name)
    inputs = [x.detach() * (0.2 if at else 1) for at, x in enumerate(operator.inputs(case))]
    tensors = {f"x{at}": x for at, x in enumerate(inputs)}
    names = tuple(tensors)
    if add:
        tensors["add"] = case.addend()

    def ours(**tensors):
        return (operator.ours(*[tensors.pop(name) for name in names], **tensors, dilation=dilation, **options),)

    return ours, tensors


def focal(*arguments):
    case = focal_cases.Case(*arguments, seed=0)
    tensors = {f"x{at}": x.detach() for at, x in enumerate(case.inputs())}
    return lambda **tensors: (case.ours(*tensors.values()),), tensors


def linear(*arguments, dim=32, **options):
    case = linear_cases.Case(*arguments, dim=dim, value_dim=dim, **options)
    tensors = {name: x.detach() for name, x in case.tensors().items()}
    return lambda **tensors: (case.ours(**tensors),), tensors


def norm(shape):
    weight, bias = torch.randn(2, shape[-1], generator=torch.Generator().manual_seed(0))
    tensors = {"x0": torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + 5, "w": weight, "b": bias}
    return lambda x0, w, b: batch_norm(x0, w, b), tensors


def agent(*arguments, dim=32):
    case = agent_cases.Case(*arguments, dim=dim, value_dim=dim)
    tensors = {name: x.detach() for name, x in case.tensors().items()}
    return lambda **tensors: (case.ours(**tensors),), tensors


CALLS = {
    "window 2x2": lambda: window((2, 2), (28, 28), bias=False),
    "window 7x7, mask": lambda: window((7, 7), (4, 5), mask="boolean", heads=3),
    "window 8x8, wide": lambda: window((8, 8), (3, 3), dim=64, value_dim=48),
    "window 12x12": lambda: window((12, 12), (2, 3), mask="additive"),
    "window 16x16, no bias": lambda: window((16, 16), (2, 2), bias=False, dim=128, value_dim=128),
    "batch norm": lambda: norm((4, 28, 30, 96)),
    "batch norm, odd": lambda: norm((3, 7, 9, 70)),
    "depthwise 7x7": lambda: convolution("depthwise_conv2d", (4, 56, 50, 96)),
    "depthwise 31x31": lambda: convolution(
        "depthwise_conv2d", (2, 33, 28, 40), dilated_kernel=(31, 31), dilation=(1, 1)
    ),
    "depthwise 5x13, odd": lambda: convolution("depthwise_conv2d", (2, 17, 9, 27), dilated_kernel=(5, 13), bias=False),
    "depthwise 3x3, GELU": lambda: convolution(
        "depthwise_conv2d", (4, 56, 50, 96), dilated_kernel=(3, 3), dilation=(1, 1), activation="gelu"
    ),
    "depthwise 3x3, odd, GELU, residual": lambda: convolution(
        "depthwise_conv2d", (2, 13, 7, 27), (5, 5), (3, 3), (1, 1), False, activation="gelu", residual=True
    ),
    "depthwise 13x13, GELU": lambda: convolution(
        "depthwise_conv2d", (2, 28, 30, 160), dilated_kernel=(13, 13), dilation=(1, 1), activation="gelu"
    ),
    "depthwise 3x3, added map": lambda: convolution(
        "depthwise_conv2d", (4, 56, 50, 96), dilated_kernel=(3, 3), dilation=(1, 1), add=True
    ),
    "depthwise 5x5, odd, added map": lambda: convolution(
        "depthwise_conv2d", (3, 14, 13, 27), dilated_kernel=(5, 5), dilation=(1, 1), add=True
    ),
    "depthwise 13x13, GELU, added map": lambda: convolution(
        "depthwise_conv2d", (2, 28, 30, 160), dilated_kernel=(13, 13), dilation=(1, 1), activation="gelu", add=True
    ),
    "large kernel": lambda: convolution("large_kernel_attention", (4, 28, 30, 64)),
    "large kernel, wide": lambda: convolution("large_kernel_attention", (2, 14, 14, 320), activation="gelu"),
    "focal": lambda: focal((4, 56, 50, 96), (3, 5), False),
    "focal, three levels": lambda: focal((2, 14, 15, 128), (3, 5, 7), True),
    "focused, many heads": lambda: linear((28, 28), (28, 28), "focused", "focused", "divide", heads=8),
    "focused, cubed": lambda: linear((56, 56), (56, 56), "focused", "focused", "divide", power=3.0),
    "focused, cubed, odd": lambda: linear((27, 31), (19, 33), "focused", "focused", "divide", power=3.0, heads=3),
    "focused, cubed, many heads": lambda: linear(
        (48, 40), (40, 48), "focused", "focused", "divide", power=3.0, heads=8, dim=64
    ),
    "rala": lambda: linear((28, 28), (28, 28), "elu_plus_one", "elu_plus_one", "divide", weight=True, rotary=True),
    "mala": lambda: linear((30, 30), (30, 30), "elu_plus_one", "elu_plus_one", "magnitude_aware", rotary=True),
    "agent": lambda: agent((30, 31), (30, 31), (7, 7)),
    "agent, whole vectors": lambda: agent((32, 36), (28, 32), (7, 7), dim=64),
    "agent, few": lambda: agent((28, 28), (56, 56), (3, 3)),
    "window 7x7, numbers as mask": lambda: window((7, 7), (4, 5), mask="additive", heads=3),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def run(function, tensors):
    """Return outputs and the gradients of what is learned, for cotangents that depend on nothing but shapes."""
    learned = [name for name in tensors if "rotary" not in name and name != "mask"]
    tensors = {name: x.detach().requires_grad_(name in learned) for name, x in tensors.items()}
    outs = function(**tensors)
    total = sum(
        (
            out.double() * torch.linspace(-9, 9, out.numel(), dtype=torch.float64, device=out.device).cos().view_as(out)
        ).sum()
        for out in outs
    )
    return [x.detach() for x in (*outs, *torch.autograd.grad(total, [tensors[name] for name in learned]))]


def to(tensors, *place):
    return {name: x if x.dtype == torch.bool else x.to(*place) for name, x in tensors.items()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_fused_kernels_equal_the_definition(name, dtype):
    function, tensors = CALLS[name]()
    rounded = {name: x.to("cuda") for name, x in to(tensors, dtype).items()}
    with saccade.backend("fused"):
        found = run(function, rounded)
        again = run(function, rounded)
    with saccade.backend("reference"):
        truth = run(function, to({name: x.cpu() for name, x in rounded.items()}, torch.float64))
    errors = [distance(value.cpu(), true) for value, true in zip(found, truth, strict=True)]
    assert max(errors) < TOLERANCE[dtype], errors
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize(
    "name",
    [
        "window 7x7, mask",
        "batch norm",
        "depthwise 3x3, GELU",
        "depthwise 3x3, added map",
        "large kernel",
        "focal",
        "rala",
        "agent",
    ],
)
def test_compiled_and_captured(name):
    function, tensors = CALLS[name]()
    tensors = {name: x.to("cuda") for name, x in to(tensors, torch.bfloat16).items()}
    truth = [x.detach() for x in function(**tensors)]
    compiled = torch.compile(lambda **tensors: function(**tensors), fullgraph=True)
    for value, true in zip(compiled(**tensors), truth, strict=True):
        assert distance(value, true) < 1e-2
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = function(**tensors)
    graph.replay()
    assert all(map(torch.equal, captured, truth))


def test_gelu_is_as_exact_as_float32():
    # It needs Triton, which a machine that skips these tests may lack.
    import gelu_errors

    gelu_errors.check(gelu_errors.errors("cuda"), gelu_errors.at_the_ends("cuda"))


@pytest.mark.parametrize("name", ["window 7x7, mask", "focused, many heads", "rala", "agent"])
def test_large_inputs_stay_finite(name):
    function, tensors = CALLS[name]()
    for dtype in (torch.float16, torch.bfloat16):
        scaled = {key: 100 * x if key in ("q", "k", "v", "agents", "x0") else x for key, x in tensors.items()}
        found = run(function, {key: x.to("cuda") for key, x in to(scaled, dtype).items()})
        assert found[0].isfinite().all()
