"""Neighborhood attention as an operator of torch: gradients, compile, export, vmap, autocast, FLOPs, bad input."""

import pytest
import torch
from neighborhood_cases import Case, distance
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.neighborhood import blocked, neighborhood_attention
from saccade.kernels.neighborhood.geometry import geometry

BACKENDS = ("reference", "blocked")
CASES = [
    Case((6, 7), (3, 3), (1, 1), (2, 1), (False, False), True, 1, 2, 4, seed=1),
    Case((9,), (4,), (2,), (2,), (False,), False, 2, 1, 4, seed=2),
    Case((4, 5, 6), (2, 3, 3), (1, 2, 1), (1, 1, 2), (True, False, False), False, 1, 2, 2, seed=3),
    Case((8, 5), (3, 5), (2, 1), (1, 1), (True, False), True, 1, 1, 4, seed=4),
]


def attend(case, bias_given):
    def function(*inputs):
        bias = inputs[3] if bias_given else None
        return neighborhood_attention(*inputs[:3], **case.settings, bias=bias, return_lse=True)

    return function


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case, backend):
    inputs = [x.detach().requires_grad_() for x in case.tensors() if x is not None]
    with saccade.backend(backend):
        assert torch.autograd.gradcheck(attend(case, case.bias), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_opcheck(case, backend):
    torch.use_deterministic_algorithms(False)  # opcheck compares fresh memory
    q, k, v, bias = (None if x is None else x.detach().requires_grad_() for x in case.tensors(torch.float32))
    settings = [list(values) for values in case.settings.values()]
    torch.library.opcheck(torch.ops.saccade.neighborhood_attention.default, (q, k, v, bias, *settings, 0.3, backend))
    with torch.no_grad():
        out, lse = torch.ops.saccade.neighborhood_attention(q, k, v, bias, *settings, 0.3, backend)
        arguments = (torch.randn_like(out), torch.randn_like(lse), q, k, v, bias, out, lse, *settings, 0.3, backend)
        arguments = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
        torch.library.opcheck(torch.ops.saccade.neighborhood_attention_backward.default, arguments)


def test_compile_once_for_changing_sizes():
    compilations = []

    def count(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    bias = torch.randn(2, 5, 5)
    function = torch.compile(
        lambda qkv: neighborhood_attention(*qkv.unbind(3), 3, dilation=2, bias=bias), fullgraph=True, backend=count
    )
    for size in ((8, 9), (11, 7), (6, 30), (16, 16), (21, 13)):
        qkv = torch.randn(3, *size, 3, 2, 4)
        assert distance(function(qkv), neighborhood_attention(*qkv.unbind(3), 3, dilation=2, bias=bias)) < 1e-6
    assert len(compilations) <= 2, "one static compilation and one with dynamic sizes"


def test_compile_gradients():
    case = CASES[0]
    inputs = [x.detach().requires_grad_() for x in case.tensors()]
    function = torch.compile(attend(case, True), fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(*inputs)[0].square().sum(), inputs) for f in (attend(case, True), function)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_export():
    class Attend(torch.nn.Module):
        def forward(self, qkv):
            return neighborhood_attention(*qkv.unbind(3), 3)

    qkv = torch.randn(2, 8, 9, 3, 2, 4)
    sizes = {1: torch.export.Dim("height", min=3), 2: torch.export.Dim("width", min=3)}
    program = torch.export.export(Attend(), (qkv,), dynamic_shapes=(sizes,))
    other = torch.randn(2, 5, 12, 3, 2, 4)
    assert torch.equal(program.module()(other), Attend()(other))


@pytest.mark.parametrize("bias_mapped", [False, True])
def test_vmap_and_per_sample_gradients(bias_mapped):
    case = CASES[0]
    q, k, v, bias = case.tensors()
    stacked = [torch.stack([x, 2 * x, -x]) for x in (q, k, v)]
    biases = torch.stack([bias, -bias, 2 * bias]) if bias_mapped else bias

    def loss(q, k, v, bias):
        return neighborhood_attention(q, k, v, **case.settings, bias=bias).square().sum()

    dims = (0, 0, 0, 0 if bias_mapped else None)
    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)), in_dims=dims)(*stacked, biases)
    for i in range(3):
        arguments = [x[i] for x in stacked] + [biases[i] if bias_mapped else biases]
        truth = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*arguments)
        assert all(distance(value[i], true) < 1e-12 for value, true in zip(found, truth, strict=True))


def test_autocast_casts_inputs_and_keeps_the_bias():
    q, k, v, bias = (x.float().requires_grad_() for x in CASES[0].tensors())
    with torch.autocast("cpu", torch.bfloat16):
        out = neighborhood_attention(q, k.bfloat16(), v, 3, bias=bias)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert bias.grad.dtype == q.grad.dtype == torch.float32


def test_activation_checkpointing():
    case = CASES[0]
    inputs = [x.detach().requires_grad_() for x in case.tensors()]
    plain = torch.autograd.grad(attend(case, True)(*inputs)[0].square().sum(), inputs)
    again = torch.autograd.grad(checkpoint(attend(case, True), *inputs, use_reentrant=False)[0].square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_flops_are_counted():
    q, k, v = (torch.randn(2, 8, 9, 3, 16, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        out = neighborhood_attention(q, k, v, (3, 5))
        forward = counter.get_total_flops()
        out.sum().backward()
    pairs = 2 * 8 * 9 * 3 * 15
    assert forward == 4 * pairs * 16
    assert counter.get_total_flops() - forward == 10 * pairs * 16


def test_memory_does_not_grow_with_tokens_times_window():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
            return result

    q, k, v = torch.randn(1, 160, 160, 3, 1, 8).unbind(3)
    shape = geometry((160, 160), (13, 13), (1, 1), (1, 1), (False, False))
    with torch.no_grad(), Largest() as largest:
        out, lse = blocked.forward(q, k, v, None, shape, 1.0)
        blocked.backward(out, lse, q, k, v, None, out, lse, shape, 1.0)
    assert 3 * blocked.CHUNK < 160 * 160 * 169
    assert largest.numel <= 2 * blocked.CHUNK


@pytest.mark.parametrize("causal", [False, True])
def test_window_one_returns_the_values(causal):
    q, k, v = torch.randn(3, 2, 4, 5, 2, 8).unbind(0)
    for backend in BACKENDS:
        with saccade.backend(backend):
            assert distance(neighborhood_attention(q, k, v, 1, causal=causal), v) < 1e-6


def test_empty_batch():
    q = torch.randn(0, 7, 7, 2, 8, requires_grad=True)
    out = neighborhood_attention(q, q, q, 3, bias=torch.zeros(2, 5, 5, requires_grad=True))
    out.sum().backward()
    assert out.shape == q.grad.shape == q.shape


GOOD = torch.zeros(2, 8, 9, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 11}, r"window=11 times dilation=1 is 11 on axis 0, more than the map's 8 .* at most 8"),
        ({"window": (3, 11)}, r"window=11 .* axis 1, more than the map's 9"),
        ({"window": 3, "dilation": 3}, r"window=3 times dilation=3 is 9 on axis 0, .* at most 2"),
        ({"window": 0}, r"window=0 on axis 0; valid: 1 or more"),
        ({"window": -3}, r"window=-3"),
        ({"window": (3, 3, 3)}, r"window=\(3, 3, 3\) has 3 entries; valid: one int or 2"),
        ({"window": 3.0}, r"window=3.0 must be of type int, got float"),
        ({"window": 3, "stride": 4}, r"stride=4 on axis 0; valid: 1 to the window, 3"),
        ({"window": 3, "stride": 0}, r"stride=0"),
        ({"window": 3, "dilation": 0}, r"dilation=0 on axis 0; valid: 1 or more"),
        ({"window": 3, "causal": 1}, r"causal=1 must be of type bool, got int"),
        ({"window": 4, "bias": torch.zeros(2, 7, 7)}, r"window=4 is even; valid with a relative position bias: odd"),
        ({"window": 3, "bias": torch.zeros(2, 3, 5)}, r"bias has shape \[2, 3, 5\]; valid: .* = \[2, 5, 5\]"),
        ({"window": 3, "bias": torch.zeros(2, 5, 5).half()}, r"bias has dtype torch.float16; valid: that of q"),
        ({"window": 3, "bias": torch.zeros(2, 5, 5, device="meta")}, r"bias is on meta; valid: the device of q, cpu"),
        ({"window": 3, "k": GOOD.double()}, r"k has dtype torch.float64; valid: that of q, torch.float32"),
        ({"window": 3, "v": GOOD.to("meta")}, r"v is on meta; valid: the device of q, cpu"),
        ({"window": 3, "k": GOOD[:1]}, r"k has shape \[1, 8, 9, 2, 4\]; valid: that of q"),
        ({"window": 3, "v": GOOD[:, :4]}, r"v has shape \[2, 4, 9, 2, 4\]; valid: that of q up to the last axis"),
        (
            {"window": 3, "q": GOOD.long(), "k": GOOD.long(), "v": GOOD.long()},
            r"q has dtype torch.int64; valid: float16",
        ),
        ({"window": 3, "q": GOOD[0, 0]}, r"q has shape \[9, 2, 4\]; valid: \[B, \*spatial, heads, D\]"),
    ],
)
def test_bad_input_is_told_in_one_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(**{"q": GOOD, "k": GOOD, "v": GOOD, **arguments})


def test_second_derivatives_are_refused():
    q, k, v, bias = (x.requires_grad_() for x in CASES[0].tensors())
    (gradient,) = torch.autograd.grad(neighborhood_attention(q, k, v, 3, bias=bias).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"saccade::neighborhood_attention is differentiable once"):
        gradient.sum().backward()
