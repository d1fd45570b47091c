"""Window attention as an operator of torch: gradients, compile, export, vmap, autocast, FLOPs, bad input."""

import pytest
import torch
from neighborhood_cases import distance
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from window_cases import Case, dense

import saccade
from saccade.kernels.window import window_attention

CASES = [
    Case((2, 3), (2, 2), True, None, 1, 2, 3, 4, seed=1),
    Case((3,), (3,), False, "additive", 2, 1, 4, 2, seed=2),
    Case((2, 1, 2), (1, 3, 2), True, "boolean", 1, 2, 2, 2, seed=3),
]


def attend(case, mask):
    def function(q, k, v, bias=None):
        return window_attention(q, k, v, case.window, bias=bias, mask=mask, return_lse=True)

    return function


def seen(mask):
    """Return the mask with every token seeing itself, so that the log-sum-exp is finite."""
    if mask is None:
        return None
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool) if mask.dtype == torch.bool else mask.clamp_min(-3)


def prepare(case, dtype=torch.float64):
    *inputs, mask = case.tensors(dtype)
    return [x.detach().requires_grad_() for x in inputs if x is not None], seen(mask)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case):
    inputs, mask = prepare(case)
    assert torch.autograd.gradcheck(attend(case, mask), inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case):
    torch.use_deterministic_algorithms(False)  # opcheck compares fresh memory
    inputs, mask = prepare(case, torch.float32)
    q, k, v, bias = inputs if case.bias else (*inputs, None)
    settings = (list(case.window), 0.3, "auto")
    torch.library.opcheck(torch.ops.saccade.window_attention.default, (q, k, v, bias, mask, *settings))
    with torch.no_grad():
        out, lse = torch.ops.saccade.window_attention(q, k, v, bias, mask, *settings)
        arguments = (torch.randn_like(out), torch.randn_like(lse), q, k, v, bias, mask, out, lse, *settings)
        arguments = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
        torch.library.opcheck(torch.ops.saccade.window_attention_backward.default, arguments)


def test_compile_once_for_changing_sizes():
    compilations = []

    def count(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    bias = torch.randn(2, 6, 6)
    function = torch.compile(
        lambda qkv: window_attention(*qkv.unbind(3), (2, 3), bias=bias), fullgraph=True, backend=count
    )
    for size in ((8, 9), (10, 6), (6, 30), (16, 15), (22, 12)):
        qkv = torch.randn(3, *size, 3, 2, 4)
        assert distance(function(qkv), window_attention(*qkv.unbind(3), (2, 3), bias=bias)) < 1e-6
    assert len(compilations) <= 2, "one static compilation and one with dynamic sizes"


def test_compile_gradients():
    inputs, mask = prepare(CASES[2])
    plain = attend(CASES[2], mask)
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(*inputs)[0].square().sum(), inputs) for f in (plain, compiled)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_export():
    class Attend(torch.nn.Module):
        def forward(self, qkv):
            return window_attention(*qkv.unbind(3), 2)

    rows, columns = (torch.export.Dim(name, min=1) for name in ("rows", "columns"))
    program = torch.export.export(
        Attend(), (torch.randn(2, 8, 6, 3, 2, 4),), dynamic_shapes=({1: 2 * rows, 2: 2 * columns},)
    )
    other = torch.randn(2, 4, 12, 3, 2, 4)
    assert torch.equal(program.module()(other), Attend()(other))


@pytest.mark.parametrize("mapped", ["q k v", "q k v bias", "q k v mask"])
def test_vmap_and_per_sample_gradients(mapped):
    inputs, mask = prepare(CASES[2])
    tensors = dict(zip(("q", "k", "v", "bias", "mask"), (*(x.detach() for x in inputs), mask), strict=True))
    varied = {
        name: torch.stack([x, ~x | seen(~x), x] if name == "mask" else [x, 2 * x, -x]) for name, x in tensors.items()
    }
    dims = [0 if name in mapped.split() else None for name in tensors]

    def loss(q, k, v, bias, mask):
        out, lse = attend(CASES[2], mask)(q, k, v, bias)
        return out.square().sum() + lse.sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    arguments = [varied[name] if dim == 0 else tensors[name] for name, dim in zip(tensors, dims, strict=True)]
    found = torch.func.vmap(gradient, in_dims=tuple(dims))(*arguments)
    for i in range(3):
        truth = gradient(*(x[i] if dim == 0 else x for x, dim in zip(arguments, dims, strict=True)))
        assert all(distance(value[i], true) < 1e-12 for value, true in zip(found, truth, strict=True))


def test_vmap_of_a_mask_alone():
    (q, k, v, bias), mask = prepare(CASES[2])
    masks = torch.stack([mask, seen(~mask)])
    found = torch.func.vmap(lambda mask: attend(CASES[2], mask)(q, k, v, bias)[0])(masks)
    for value, each in zip(found, masks, strict=True):
        assert distance(value, dense(CASES[2], q, k, v, bias, each)[0]) < 1e-12


def test_autocast_casts_inputs_and_keeps_the_bias():
    q, k, v, bias, _ = (x if x is None else x.float().requires_grad_() for x in CASES[0].tensors())
    with torch.autocast("cpu", torch.bfloat16):
        out = window_attention(q, k.bfloat16(), v, (2, 3), bias=bias)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert bias.grad.dtype == q.grad.dtype == torch.float32


def test_activation_checkpointing():
    inputs, mask = prepare(CASES[1])
    function = attend(CASES[1], mask)
    plain = torch.autograd.grad(function(*inputs)[0].square().sum(), inputs)
    again = torch.autograd.grad(checkpoint(function, *inputs, use_reentrant=False)[0].square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_flops_are_counted():
    q, k = (torch.randn(2, 8, 9, 3, 16, requires_grad=True) for _ in range(2))
    v = torch.randn(2, 8, 9, 3, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = window_attention(q, k, v, (4, 3))
        forward = counter.get_total_flops()
        out.sum().backward()
    pairs = 2 * 8 * 9 * 3 * 12
    assert forward == 2 * pairs * (16 + 5)
    assert counter.get_total_flops() - forward == 2 * pairs * (3 * 16 + 2 * 5)


def test_explain():
    told = saccade.explain(window_attention, GOOD, GOOD, GOOD, 3).splitlines()
    assert told[0].startswith("   forward  fused")
    assert told[1] == "-> forward  reference runs"


def test_window_of_one_token_returns_the_values():
    q, k, v = torch.randn(3, 2, 4, 5, 2, 8).unbind(0)
    assert distance(window_attention(q, k, v, 1), v) < 1e-6


def test_empty_batch():
    q = torch.randn(0, 6, 6, 2, 8, requires_grad=True)
    out = window_attention(q, q, q, 3, bias=torch.zeros(2, 9, 9, requires_grad=True), mask=torch.zeros(4, 9, 9))
    out.sum().backward()
    assert out.shape == q.grad.shape == q.shape


def test_second_derivatives_are_refused():
    (q, k, v, bias), _ = prepare(CASES[0])
    (gradient,) = torch.autograd.grad(window_attention(q, k, v, (2, 3), bias=bias).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"saccade::window_attention is differentiable once"):
        gradient.sum().backward()


GOOD = torch.zeros(2, 6, 9, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"window=0 on axis 0; valid: 1 or more"),
        ({"window": -3}, r"window=-3 on axis 0; valid: 1 or more"),
        ({"window": (3, 2)}, r"window=2 on axis 1 does not divide the map's 9 .* divisor of 9, or a map padded to 10"),
        ({"window": 12}, r"window=12 on axis 0 does not divide the map's 6 .* padded to 12"),
        ({"window": (3, 3, 3)}, r"window=\(3, 3, 3\) has 3 entries; valid: one int or 2"),
        ({"window": 3.0}, r"window=3.0 must be of type int, got float"),
        ({"bias": torch.zeros(2, 5, 5)}, r"bias has shape \[2, 5, 5\]; valid: \[heads, N, N\] = \[2, 9, 9\]"),
        ({"bias": torch.zeros(2, 9, 9).half()}, r"bias has dtype torch.float16; valid: torch.float32"),
        ({"bias": torch.zeros(2, 9, 9, device="meta")}, r"bias is on meta; valid: the device of q, cpu"),
        ({"mask": torch.zeros(2, 9, 9)}, r"mask has shape \[2, 9, 9\]; valid: \[windows, N, N\] = \[6, 9, 9\]"),
        ({"mask": torch.zeros(6, 9, 9).long()}, r"mask has dtype torch.int64; valid: torch.bool, torch.float32"),
        ({"mask": torch.zeros(6, 9, 9, requires_grad=True)}, r"mask requires a gradient; valid: a constant"),
        ({"k": GOOD.double()}, r"k has dtype torch.float64; valid: that of q, torch.float32"),
        ({"k": GOOD[:1]}, r"k has shape \[1, 6, 9, 2, 4\]; valid: that of q"),
        ({"v": GOOD[:, :3]}, r"v has shape \[2, 3, 9, 2, 4\]; valid: that of q up to the last axis"),
        ({"q": GOOD.long(), "k": GOOD.long(), "v": GOOD.long()}, r"q has dtype torch.int64; valid: float16"),
        ({"q": GOOD[0, 0]}, r"q has shape \[9, 2, 4\]; valid: \[B, \*spatial, heads, D\]"),
    ],
)
def test_bad_input_is_told_in_one_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        window_attention(**{"q": GOOD, "k": GOOD, "v": GOOD, "window": 3, **arguments})
