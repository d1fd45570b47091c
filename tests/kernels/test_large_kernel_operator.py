"""Depthwise convolution and large kernel attention as operators of torch: gradients, compile, vmap, bad input."""

import pytest
import torch
from large_kernel_cases import OPERATORS, Case
from neighborhood_cases import distance
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.depthwise import depthwise_conv2d
from saccade.kernels.large_kernel import large_kernel_attention

BACKENDS = ("reference", "blocked")
CASES = [
    Case((2, 4, 5, 3), (3, 1), (5, 3), (2, 1), True, seed=1),
    Case((1, 7, 3, 2), (1, 3), (3, 7), (3, 2), False, seed=2),
]

each_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_case = pytest.mark.parametrize("case", CASES, ids=["biases", "no biases"])


def with_settings(operator, case):
    return lambda *inputs: operator.ours(*inputs, dilation=case.dilation)


@each_operator
@each_backend
@each_case
def test_gradcheck(operator, backend, case):
    with saccade.backend(backend):
        assert torch.autograd.gradcheck(with_settings(operator, case), operator.inputs(case))


@each_operator
@each_backend
@each_case
def test_opcheck(operator, backend, case):
    torch.use_deterministic_algorithms(False)  # opcheck compares fresh memory
    inputs = operator.inputs(case, torch.float32)
    op = getattr(torch.ops.saccade, operator.name).default
    inputs += [None] * (sum("Tensor" in str(argument.type) for argument in op._schema.arguments) - len(inputs))
    settings = (list(case.dilation), *operator.options.values(), backend)
    arguments = (*inputs, *settings)
    torch.library.opcheck(op, arguments)
    with torch.no_grad():
        plain = [x if x is None else x.detach() for x in inputs]
        out = getattr(torch.ops.saccade, operator.name)(*plain, *settings)
        kept = out[1:] if isinstance(out, tuple) else ()
        op = getattr(torch.ops.saccade, f"{operator.name}_backward").default
        arguments = [torch.randn_like(plain[0]), plain[0], *kept, *plain[1:]]
        # A map that is added has no part in it.
        arguments = arguments[: len(op._schema.arguments) - len(settings)]
        torch.library.opcheck(op, (*arguments, *settings))


@each_operator
def test_compile_once_for_changing_sizes(operator):
    compilations = []

    def count(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    _, *parameters = operator.inputs(CASES[0], torch.float32)
    plain = with_settings(operator, CASES[0])
    compiled = torch.compile(plain, fullgraph=True, backend=count)
    for size in ((8, 9), (11, 7), (6, 30), (16, 16), (21, 13)):
        x = torch.randn(3, *size, 3)
        assert distance(compiled(x, *parameters), plain(x, *parameters)) < 1e-6
    assert len(compilations) <= 2, "one static compilation and one with dynamic sizes"


@each_operator
@each_case
def test_compile_gradients(operator, case):
    inputs = operator.inputs(case, torch.float32)
    plain = with_settings(operator, case)
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (plain, compiled)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_operator
def test_export(operator):
    _, *parameters = (x.detach() for x in operator.inputs(CASES[0], torch.float32))

    class Call(torch.nn.Module):
        def forward(self, x):
            return operator.ours(x, *parameters, dilation=2)

    sizes = {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.export.export(Call(), (torch.randn(2, 8, 9, 3),), dynamic_shapes=(sizes,))
    other = torch.randn(2, 5, 12, 3)
    assert torch.equal(program.module()(other), Call()(other))


@each_operator
@pytest.mark.parametrize("parameters_mapped", [False, True])
def test_vmap_and_per_sample_gradients(operator, parameters_mapped):
    x, *parameters = (value.detach() for value in operator.inputs(CASES[0]))
    stacked = [torch.stack([value, 2 * value, -value]) for value in (x, *parameters)]
    if not parameters_mapped:
        stacked[1:] = parameters
    dims = (0, *((0 if parameters_mapped else None) for _ in parameters))
    plain = with_settings(operator, CASES[0])
    arguments = tuple(range(len(stacked)))
    gradient = torch.func.grad(lambda *inputs: plain(*inputs).square().sum(), argnums=arguments)
    outs = torch.func.vmap(plain, in_dims=dims)(*stacked)
    found = torch.func.vmap(gradient, in_dims=dims)(*stacked)
    for i in range(3):
        inputs = [value if dim is None else value[i] for value, dim in zip(stacked, dims, strict=True)]
        assert distance(outs[i], plain(*inputs)) < 1e-12
        assert all(distance(value[i], true) < 1e-12 for value, true in zip(found, gradient(*inputs), strict=True))


@each_operator
def test_autocast_casts_the_map_and_keeps_parameters(operator):
    inputs = operator.inputs(CASES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = operator.ours(*inputs)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in inputs)
    double = operator.inputs(CASES[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert operator.ours(*double).dtype == torch.float64


@each_operator
def test_activation_checkpointing(operator):
    inputs = operator.inputs(CASES[0])
    plain = with_settings(operator, CASES[0])
    gradients = torch.autograd.grad(plain(*inputs).square().sum(), inputs)
    again = torch.autograd.grad(checkpoint(plain, *inputs, use_reentrant=False).square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


@each_operator
def test_second_derivatives_are_refused(operator):
    inputs = operator.inputs(CASES[0])
    (gradient,) = torch.autograd.grad(operator.ours(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match=rf"saccade::{operator.name} is differentiable once"):
        gradient.sum().backward()


@each_operator
def test_empty_batch(operator):
    x, *parameters = operator.inputs(CASES[0], torch.float32)
    for backend in BACKENDS:
        with saccade.backend(backend):
            empty = x.detach()[:0].requires_grad_()
            out = operator.ours(empty, *parameters)
            gradients = torch.autograd.grad(out.sum(), [empty, *parameters])
            assert out.shape == empty.shape == gradients[0].shape
            assert all(gradient.count_nonzero() == 0 for gradient in gradients)


def test_flops_are_counted():
    case = Case((2, 8, 9, 4), (5, 5), (7, 7), (3, 3), True, seed=0)
    numel, taps = 2 * 8 * 9 * 4, 25 + 49
    # With an activation the gradient takes the convolution again.
    attention = (2 * (taps + 4), 4 * taps + 6 * 4)
    expected = ((2 * 49, 4 * 49), (2 * 49, 6 * 49), (2 * 49, 4 * 49), attention, attention)
    for operator, flops in zip(OPERATORS, expected, strict=True):
        with FlopCounterMode(display=False) as counter:
            out = operator.ours(*operator.inputs(case, torch.float32), dilation=3)
            forward = counter.get_total_flops()
            out.sum().backward()
        assert (forward, counter.get_total_flops() - forward) == tuple(numel * n for n in flops)


def test_frozen_parameters_and_inputs():
    """Only what asks for a gradient gets one."""
    x, *parameters = (value.detach() for value in OPERATORS[-1].inputs(CASES[0]))
    parameters[3].requires_grad_()
    large_kernel_attention(x, *parameters).sum().backward()
    assert parameters[3].grad is not None and x.grad is None and parameters[0].grad is None
    assert not large_kernel_attention(x, *(p.detach() for p in parameters)).requires_grad


@each_operator
def test_explain(operator):
    def told():
        return saccade.explain(operator.function, *inputs, dilation=2, **operator.options).splitlines()

    inputs = operator.inputs(CASES[0])
    assert "-> forward  blocked   runs" in told()
    with saccade.backend("reference"):
        assert "-> backward reference runs" in told()


MAP = torch.zeros(2, 8, 9, 4)
KERNEL = torch.zeros(4, 1, 3, 3)
FIELDS = {"x": MAP, "local_weight": KERNEL, "spatial_weight": KERNEL, "point_weight": torch.zeros(4, 4)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": MAP[0]}, r"x has shape \[8, 9, 4\]; valid: \[B, H, W, C\]"),
        ({"x": MAP[:, :0]}, r"x has shape \[2, 0, 9, 4\]; valid: H, W and C of at least 1"),
        ({"x": MAP.long()}, r"x has dtype torch.int64; valid: float16"),
        ({"weight": KERNEL[:, 0]}, r"weight has shape \[4, 3, 3\]; valid: \[4, 1, kh, kw\] with odd kh and kw"),
        ({"weight": KERNEL[..., :2]}, r"weight has shape \[4, 1, 3, 2\]; valid: \[4, 1, kh, kw\] with odd"),
        ({"weight": KERNEL[:3]}, r"weight has shape \[3, 1, 3, 3\]; valid: \[4, 1, 3, 3\]"),
        ({"weight": KERNEL.double()}, r"weight has dtype torch.float64; valid: that of x, torch.float32"),
        ({"weight": KERNEL.to("meta")}, r"weight is on meta; valid: the device of x, cpu"),
        ({"bias": torch.zeros(3)}, r"bias has shape \[3\]; valid: \[4\]"),
        ({"x_bias": torch.zeros(3)}, r"x_bias has shape \[3\]; valid: \[4\]"),
        ({"add": MAP[:1]}, r"add has shape \[1, 8, 9, 4\]; valid: \[2, 8, 9, 4\]"),
        ({"add": MAP.double()}, r"add has dtype torch.float64; valid: that of x, torch.float32"),
        ({"add": MAP.to("meta")}, r"add is on meta; valid: the device of x, cpu"),
        ({"add": MAP, "residual": True}, r"add is a map and residual=True; valid: one of the two"),
        ({"dilation": 0}, r"dilation=0; valid: 1 or more"),
        ({"dilation": (1, 2, 3)}, r"dilation=\(1, 2, 3\) has 3 entries; valid: one int or 2"),
        ({"dilation": 2.0}, r"dilation=2.0 must be of type int, got float"),
        ({"activation": "relu"}, r"activation='relu'; valid: None, 'gelu'$"),
    ],
)
def test_bad_depthwise_input(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        depthwise_conv2d(**{"x": MAP, "weight": KERNEL, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": MAP[0]}, r"x has shape \[8, 9, 4\]; valid: \[B, H, W, C\]"),
        ({"local_weight": KERNEL[..., :2]}, r"local_weight has shape \[4, 1, 3, 2\]; valid: \[4, 1, kh, kw\] with odd"),
        ({"spatial_weight": KERNEL[:2]}, r"spatial_weight has shape \[2, 1, 3, 3\]; valid: \[4, 1, 3, 3\]"),
        ({"point_weight": torch.zeros(4, 4, 1, 1)}, r"point_weight has shape \[4, 4, 1, 1\]; valid: \[4, 4\]"),
        ({"point_bias": torch.zeros(4).half()}, r"point_bias has dtype torch.float16; valid: that of x, torch.float32"),
        ({"spatial_bias": torch.zeros(5)}, r"spatial_bias has shape \[5\]; valid: \[4\]"),
        ({"dilation": -1}, r"dilation=-1; valid: 1 or more"),
    ],
)
def test_bad_attention_input(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        large_kernel_attention(**{**FIELDS, **arguments})
