"""Fused neighborhood attention on a GPU against its definition in float64."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import saccade
from saccade.kernels.neighborhood import neighborhood_attention, neighborhood_attention_packed, reference
from saccade.kernels.neighborhood.geometry import geometry
from saccade.kernels.neighborhood.operator import attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = tuple(TOLERANCE)


def relative_error(value, truth):
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def packed(batch, shape, heads, width, dtype):
    """q, k, v as views of one projection, as a layer makes them."""
    return torch.randn(batch, *shape, 3, heads, width, device="cuda", dtype=dtype).unbind(-3)


def table(heads, window):
    return torch.randn(heads, *(2 * w - 1 for w in window), device="cuda")


def assert_matches(q, k, v, bias, settings):
    """Compare the output, the log-sum-exp and every gradient with the definition in float64."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    bias = None if bias is None else bias.detach().requires_grad_()
    inputs = [x for x in (q, k, v, bias) if x is not None]
    with saccade.backend("fused"):
        out, lse = neighborhood_attention(q, k, v, *settings, bias=bias, return_lse=True)
        grads = (torch.randn_like(out), torch.randn_like(lse))
        ours = torch.autograd.grad((out, lse), inputs, grads)
    exact = [None if x is None else x.detach().double() for x in (q, k, v, bias)]
    shape = geometry(q.shape[1:-2], *settings)
    scale = q.shape[-1] ** -0.5
    true_out, true_lse = reference.forward(*exact, shape, scale)
    true = reference.backward(*(g.double() for g in grads), *exact, true_out, true_lse, shape, scale)
    names = ("out", "lse", "dq", "dk", "dv", "dbias")
    for name, value, truth in zip(names, (out, lse, *ours), (true_out, true_lse, *true), strict=False):
        assert relative_error(value.detach(), truth) < TOLERANCE[q.dtype], name


@st.composite
def calls(draw):
    rank = draw(st.integers(1, 3))
    window, stride, dilation, causal, shape = [], [], [], [], []
    for _ in range(rank):
        w = draw(st.sampled_from((1, 2, 3, 4, 5, 7, 9) if rank < 3 else (1, 2, 3, 5)))
        d = draw(st.integers(1, 3))
        window.append(w)
        dilation.append(d)
        stride.append(draw(st.integers(1, w)))
        causal.append(draw(st.booleans()))
        shape.append(w * d + draw(st.integers(0, (40, 24, 6)[rank - 1])))
    biased = draw(st.booleans()) and all(w % 2 for w in window)
    width = draw(st.sampled_from((8, 16, 24, 32, 40, 64, 72, 128, 256)))
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    # The definition gathers keys and values in float64: 4 GB each at most, so that several processes fit on a GPU.
    assume(math.prod((*shape, *window, *sizes, width)) <= 1 << 29)
    return shape, (tuple(window), tuple(stride), tuple(dilation), tuple(causal)), biased, width, dtype, sizes


@pytest.mark.parametrize("part", range(8))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_any_call(part, call):
    shape, arguments, biased, width, dtype, (batch, heads) = call
    torch.manual_seed(0)
    bias = table(heads, arguments[0]) if biased else None
    assert_matches(*packed(batch, shape, heads, width, dtype), bias, arguments)


SHAPES = {
    "56x56": ((56, 56), 7, 1, 32),
    "28x28": ((28, 28), 7, 1, 32),
    "14x14": ((14, 14), 7, 1, 32),
    "7x7": ((7, 7), 7, 1, 32),
    "56x56 dilated": ((56, 56), 7, 8, 32),
    "detection": ((50, 83), 7, 1, 32),
    "uneven groups": ((45, 47), 5, 3, 32),
    "64x64": ((64, 64), 7, 1, 64),
    "window 13": ((40, 40), 13, 1, 64),
    "wide heads": ((24, 24), 9, 1, 128),
}


@pytest.mark.parametrize("biased", (True, False))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_models(name, dtype, biased):
    torch.manual_seed(0)
    shape, window, dilation, width = SHAPES[name]
    arguments = ((window,) * 2, (1, 1), (dilation,) * 2, (False, False))
    assert_matches(*packed(3, shape, 2, width, dtype), table(2, arguments[0]) if biased else None, arguments)


@pytest.mark.parametrize("size", (7, 14, 40))
def test_reads_nothing_outside_and_writes_everything(size):
    """Views inside a buffer of NaN, and outputs allocated from memory filled with NaN."""
    torch.manual_seed(0)
    buffer = torch.full((4, size + 9, size + 11, 3, 4, 64), math.nan, device="cuda", dtype=torch.bfloat16)
    view = buffer[1:3, 4 : 4 + size, 5 : 5 + size, :, 1:3, 16:48]
    view.normal_()
    q, k, v = (x.requires_grad_() for x in view.detach().unbind(-3))
    junk = [torch.full((1 << n,), math.nan, device="cuda") for n in range(8, 24) for _ in range(2)]
    del junk
    bias = table(2, (7, 7)).requires_grad_()
    with saccade.backend("fused"):
        out, lse = neighborhood_attention(q, k, v, 7, bias=bias, return_lse=True)
        grads = torch.autograd.grad(out.float().sum() + lse.sum(), (q, k, v, bias))
    assert all(torch.isfinite(x).all() for x in (out, lse, *grads))
    assert_matches(q, k, v, bias, ((7, 7), (1, 1), (1, 1), (False, False)))


@pytest.mark.parametrize("size", (7, 14, 56))
def test_is_deterministic(size):
    torch.manual_seed(0)
    q, k, v = (x.requires_grad_() for x in packed(16, (size, size), 4, 32, torch.bfloat16))
    bias = table(4, (7, 7)).requires_grad_()
    results = []
    for _ in range(4):
        with saccade.backend("fused"):
            out = neighborhood_attention(q, k, v, 7, bias=bias)
            results.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v, bias))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_memory_is_that_of_the_results():
    q, k, v = (x.requires_grad_() for x in packed(256, (56, 56), 4, 32, torch.bfloat16))
    bias = table(4, (7, 7)).requires_grad_()
    tensor = q.numel() * q.element_size()
    lse = q.numel() // 32 * 4
    slack = 1 << 26

    def peak(function):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = function()
        return result, torch.cuda.max_memory_allocated() - before

    with saccade.backend("fused"):
        out, forward = peak(lambda: neighborhood_attention(q, k, v, 7, bias=bias))
        dout = torch.randn_like(out)
        _, backward = peak(lambda: torch.autograd.grad(out, (q, k, v, bias), dout))
    assert forward < tensor + lse + slack
    assert backward < 3 * tensor + 3 * lse + slack


def test_more_than_two_to_the_31_elements():
    batch, size, heads, width = 3, 600, 32, 64
    qkv = torch.empty(batch, size, size, 3, heads, width, device="cuda", dtype=torch.bfloat16)
    assert qkv[0].numel() > 1 << 31
    torch.manual_seed(0)
    qkv.normal_()
    q, k, v = (x.requires_grad_() for x in qkv.detach().unbind(-3))
    with saccade.backend("fused"):
        out = neighborhood_attention(q, k, v, 7)
        dout = torch.randn_like(out)
        grads = torch.autograd.grad(out, (q, k, v), dout)
    # The last corner of the last image sees only itself.
    corner = (slice(-1, None), slice(-20, None), slice(-20, None), slice(-2, None))
    a, b, c = (x.detach()[corner].requires_grad_() for x in (q, k, v))
    small = neighborhood_attention(a, b, c, 7)
    inner = (slice(None), slice(8, None), slice(8, None))
    assert relative_error(out[corner][inner], small[inner].detach().double()) < 1e-2
    part = torch.zeros_like(small)
    part.copy_(dout[corner])
    for ours, theirs in zip(grads, torch.autograd.grad(small, (a, b, c), part), strict=True):
        inside = (slice(None), slice(12, None), slice(12, None))
        assert relative_error(ours[corner][inside], theirs[inside].double()) < 1e-2


@pytest.mark.parametrize("biased", (True, False))
def test_opcheck(biased):
    q, k, v = (x.requires_grad_() for x in packed(2, (9, 10), 2, 16, torch.float32))
    bias = table(2, (5, 3)).requires_grad_() if biased else None
    arguments = (q, k, v, bias, (5, 3), (1, 1), (1, 2), (False, False), 0.25, "fused")
    torch.library.opcheck(attention, arguments)


def test_compiles_without_a_break():
    q, k, v = (x.requires_grad_() for x in packed(2, (14, 14), 2, 32, torch.bfloat16))
    bias = table(2, (7, 7)).requires_grad_()

    def loss(q, k, v, bias):
        return neighborhood_attention(q, k, v, 7, bias=bias).float().square().sum()

    expected = torch.autograd.grad(loss(q, k, v, bias), (q, k, v, bias))
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(q, k, v, bias), (q, k, v, bias))
    for ours, theirs in zip(compiled, expected, strict=True):
        assert relative_error(ours, theirs.double()) < 1e-2


@pytest.mark.parametrize("size", (7, 14, 40))
def test_packed_gradient_is_the_same(size):
    torch.manual_seed(0)
    qkv = torch.randn(3, size, size, 3, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    bias = table(4, (7, 7)).requires_grad_()
    with saccade.backend("fused"):
        one = neighborhood_attention_packed(qkv, 7, bias=bias)
        two = neighborhood_attention(*qkv.unbind(-3), 7, bias=bias)
        grads = (torch.autograd.grad(out, (qkv, bias), torch.ones_like(out)) for out in (one, two))
        assert torch.equal(one, two) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_captures_in_a_graph():
    q, k, v = packed(4, (14, 14), 2, 32, torch.bfloat16)
    expected = neighborhood_attention(q, k, v, 7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = neighborhood_attention(q, k, v, 7)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
