"""Focal modulation as an operator of torch: gradients, compile, export, vmap, autocast, FLOPs, bad input."""

import pytest
import torch
from focal_cases import Case
from neighborhood_cases import distance
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.focal import focal_modulation

BACKENDS = ("reference", "blocked")
CASES = [Case((2, 4, 5, 3), (3, 5), False, seed=1), Case((1, 7, 3, 2), (1, 3, 5), True, seed=2)]

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@each_backend
@each_case
def test_gradcheck(backend, case):
    with saccade.backend(backend):
        assert torch.autograd.gradcheck(case.ours, case.inputs())


@each_backend
@each_case
@pytest.mark.parametrize("keeps", [False, True])
def test_opcheck(backend, case, keeps):
    torch.use_deterministic_algorithms(False)  # opcheck compares fresh memory
    projected, *point, first, second = case.inputs(torch.float32)[:5]
    flat = torch.cat([weight.detach().flatten(1) for weight in (first, second)], 1).requires_grad_()
    settings = (list(case.kernels)[:2], case.normalize, keeps, backend)
    arguments = (projected, flat, *point, *settings)
    torch.library.opcheck(torch.ops.saccade.focal_modulation.default, arguments)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    out, *saved = torch.ops.saccade.focal_modulation(*plain)
    torch.library.opcheck(torch.ops.saccade.focal_modulation_backward.default, (torch.randn_like(out), *saved, *plain))


@each_backend
@each_case
def test_a_gradient_that_was_not_foreseen(backend, case):
    """A forward pass that keeps nothing is made again."""
    projected, *point, first, second = (x.detach() for x in case.inputs()[:5])
    flat = torch.cat([first.flatten(1), second.flatten(1)], 1)
    dout, found = torch.randn(case.shape, dtype=torch.float64), []
    for keeps in (False, True):
        inputs = (projected, flat, *point, list(case.kernels)[:2], case.normalize, keeps, backend)
        _, *saved = torch.ops.saccade.focal_modulation(*inputs)
        found.append(torch.ops.saccade.focal_modulation_backward(dout, *saved, *inputs))
    assert all(map(torch.equal, *found))


def test_compile_once_for_changing_sizes():
    compilations = []

    def count(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    _, *parameters = CASES[0].inputs(torch.float32)
    compiled = torch.compile(CASES[0].ours, fullgraph=True, backend=count)
    for size in ((8, 9), (11, 7), (6, 30), (16, 16), (21, 13)):
        projected = torch.randn(3, *size, 10)
        assert distance(compiled(projected, *parameters), CASES[0].ours(projected, *parameters)) < 1e-6
    assert len(compilations) <= 2, "one static compilation and one with dynamic sizes"


@each_case
def test_compile_gradients(case):
    inputs = case.inputs(torch.float32)
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (case.ours, compiled)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_export():
    _, *parameters = (x.detach() for x in CASES[0].inputs(torch.float32))

    class Modulate(torch.nn.Module):
        def forward(self, projected):
            return CASES[0].ours(projected, *parameters)

    sizes = {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.export.export(Modulate(), (torch.randn(2, 8, 9, 10),), dynamic_shapes=(sizes,))
    other = torch.randn(2, 5, 12, 10)
    assert torch.equal(program.module()(other), Modulate()(other))


@pytest.mark.parametrize("parameters_mapped", [False, True])
@each_case
def test_vmap_and_per_sample_gradients(case, parameters_mapped):
    inputs = [x.detach() for x in case.inputs()]
    dims = (0, *((0 if parameters_mapped else None) for _ in inputs[1:]))
    stacked = [x if dim is None else torch.stack([x, 2 * x, -x]) for x, dim in zip(inputs, dims, strict=True)]
    arguments = tuple(range(len(inputs)))
    gradient = torch.func.grad(lambda *inputs: case.ours(*inputs).square().sum(), argnums=arguments)
    outs = torch.func.vmap(case.ours, in_dims=dims)(*stacked)
    found = torch.func.vmap(gradient, in_dims=dims)(*stacked)
    for i in range(3):
        inputs = [x if dim is None else x[i] for x, dim in zip(stacked, dims, strict=True)]
        assert distance(outs[i], case.ours(*inputs)) < 1e-12
        assert all(distance(value[i], true) < 1e-12 for value, true in zip(found, gradient(*inputs), strict=True))


def test_autocast_casts_the_maps_and_keeps_the_kernels():
    inputs = CASES[0].inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = CASES[0].ours(inputs[0].bfloat16(), *inputs[1:])
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert CASES[0].ours(*CASES[0].inputs()).dtype == torch.float64


def test_activation_checkpointing():
    inputs = CASES[0].inputs()
    gradients = torch.autograd.grad(CASES[0].ours(*inputs).square().sum(), inputs)
    again = torch.autograd.grad(checkpoint(CASES[0].ours, *inputs, use_reentrant=False).square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_second_derivatives_are_refused():
    inputs = CASES[0].inputs()
    (gradient,) = torch.autograd.grad(CASES[0].ours(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="saccade::focal_modulation is differentiable once"):
        gradient.sum().backward()


def test_empty_batch():
    projected, *parameters = CASES[0].inputs(torch.float32)
    for backend in BACKENDS:
        with saccade.backend(backend):
            empty = projected.detach()[:0].requires_grad_()
            out = CASES[0].ours(empty, *parameters)
            gradients = torch.autograd.grad(out.sum(), [empty, *parameters])
            assert out.shape == (0, 4, 5, 3) and gradients[0].shape == empty.shape
            assert all(gradient.count_nonzero() == 0 for gradient in gradients)


def test_only_what_asks_for_a_gradient_gets_one():
    inputs = [x.detach() for x in CASES[0].inputs()]
    inputs[-1].requires_grad_()
    CASES[0].ours(*inputs).sum().backward()
    assert inputs[-1].grad is not None and all(x.grad is None for x in inputs[:-1])


def test_flops_are_counted():
    case = Case((2, 8, 9, 4), (3, 5, 7), True, seed=0)
    with FlopCounterMode(display=False) as counter:
        out = case.ours(*case.inputs(torch.float32))
        forward = counter.get_total_flops()
        out.sum().backward()
    numel, taps, gates, channels = 2 * 8 * 9 * 4, 9 + 25 + 49, 4, 4
    assert forward == 2 * numel * (taps + gates + channels)
    assert counter.get_total_flops() - forward == 2 * numel * (2 * taps + 2 * gates + 3 * channels)


def test_explain():
    projected, point_weight, point_bias, *weights = CASES[0].inputs()
    told = saccade.explain(focal_modulation, projected, weights, point_weight)
    assert "-> forward  blocked   runs" in told.splitlines()
    with saccade.backend("reference"):
        told = saccade.explain(focal_modulation, projected, weights, point_weight, point_bias, normalize=True)
    assert "-> backward reference runs" in told.splitlines()


MAP = torch.zeros(2, 8, 9, 11)
KERNEL = torch.zeros(4, 1, 3, 3)
POINT = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"projected": MAP[0]}, r"projected has shape \[8, 9, 11\]; valid: \[B, H, W, C\]"),
        ({"projected": MAP[:, :0]}, r"projected has shape \[2, 0, 9, 11\]; valid: H, W and C of at least 1"),
        ({"projected": MAP.long()}, r"projected has dtype torch.int64; valid: float16"),
        ({"projected": MAP[..., :10]}, r".* \[2, 8, 9, 10\]; valid with 4 channels and 2 .* D of at least 11"),
        ({"weights": [KERNEL] * 3}, r".* \[2, 8, 9, 11\]; valid with 4 channels and 3 .* D of at least 12"),
        ({"weights": [KERNEL, KERNEL[:, 0]]}, r"weights\[1\] has shape \[4, 3, 3\]; valid: \[4, 1, 3, 3\]"),
        ({"weights": [KERNEL, KERNEL[..., :2, :2]]}, r"weights\[1\] has shape \[4, 1, 2, 2\]; valid: .* odd k"),
        ({"weights": [KERNEL[:3], KERNEL]}, r"weights\[0\] has shape \[3, 1, 3, 3\]; valid: \[4, 1, 3, 3\]"),
        ({"weights": [KERNEL.half(), KERNEL]}, r"weights\[0\] has dtype torch.float16; valid: .* torch.float32"),
        ({"weights": [KERNEL.to("meta"), KERNEL]}, r"weights\[0\] is on meta; valid: the device of .*, cpu"),
        ({"point_weight": POINT[0, 0]}, r"point_weight has shape \[\]; valid: \[C, C\] with C of at least 1"),
        ({"point_weight": POINT[:, :3]}, r"point_weight has shape \[4, 3\]; valid: \[4, 4\]"),
        ({"point_weight": POINT.half()}, r"point_weight has dtype torch.float16; valid: that of projected"),
        ({"point_bias": POINT}, r"point_bias has shape \[4, 4\]; valid: \[4\]"),
        ({"point_bias": POINT[0].to("meta")}, r"point_bias is on meta; valid: the device of projected, cpu"),
    ],
)
def test_bad_input_is_told_in_one_error(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        focal_modulation(**{"projected": MAP, "weights": [KERNEL, KERNEL], "point_weight": POINT, **arguments})
