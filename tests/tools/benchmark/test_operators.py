"""The operators' tables: the marks they hold, and that what stands beside our operator computes the same."""

import pytest
import torch

from saccade.tools.benchmark.kernels import OPERATORS, cases_of
from saccade.tools.benchmark.problem import Draw, Formulation

MARKS = {
    "neighborhood": {
        "128x56x56 heads 2 dim 32 window 7 dilation 1 bias": (0.15, 0.65),
        "128x28x28 heads 4 dim 32 window 7 dilation 1 bias": (0.08, 0.35),
        "128x14x14 heads 8 dim 32 window 7 dilation 1 bias": (0.04, 0.17),
        "128x7x7 heads 16 dim 32 window 7 dilation 1 bias": (0.015, 0.07),
        "128x56x56 heads 2 dim 32 window 7 dilation 8 bias": (0.15, 0.65),
        "2x200x304 heads 2 dim 32 window 7 dilation 1 bias": (0.06, 0.25),
        "8x64x64 heads 12 dim 64 window 7 dilation 1 bias": (0.15, 0.60),
        "1x128x128 heads 16 dim 64 window 13 dilation 1 bias": (0.30, 1.2),
        "1x256x256 heads 8 dim 128 window 16 dilation 1": (1.08, 4.0),
    },
    "large_kernel": {
        "128x56x56 channels 64": (0.25, 1.2),
        "128x28x28 channels 128": (0.13, 0.65),
        "128x14x14 channels 320": (0.09, 0.45),
        "128x7x7 channels 512": (0.05, 0.20),
        "2x256x256 channels 64": (0.09, 0.45),
    },
    "focal": {
        "128x56x56 channels 96 levels 2 window 3": (0.50, 1.9),
        "128x28x28 channels 192 levels 2 window 3": (0.28, 1.1),
        "128x14x14 channels 384 levels 2 window 3": (0.17, 0.60),
    },
    "window": {
        "128x56x56 heads 1 dim 32 window 2": (0.05, 0.16),
        "128x56x56 heads 3 dim 32 window 7": (0.15, 0.50),
    },
    "linear": {
        "128x56x56 heads 2 dim 32 focused": (0.085, 0.27),
        "16x128x128 heads 8 dim 64 focused": (0.40, 1.2),
    },
    "agent": {
        "128x56x56 heads 3 dim 32 agents 9": (0.25, 0.75),
        "16x64x64 heads 6 dim 64 agents 49": (0.12, 0.40),
    },
}
REDUCED = [
    (operator, case) for operator in OPERATORS for case in dict.fromkeys(c.reduced() for c in cases_of(operator))
]
EXACT = Draw(torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("operator", OPERATORS)
def test_marks(operator):
    found = {str(case): case.marks for case in cases_of(operator) if case.marks is not None}
    assert found == MARKS.get(operator, {})
    assert len({str(case) for case in cases_of(operator)}) == len(cases_of(operator)) > 0


def test_reduced_cases_are_small_and_have_no_marks():
    for _, case in REDUCED:
        assert case.marks is None
        inputs = case.problem(Draw(torch.device("cpu"), torch.float32)).inputs
        assert sum(x.numel() for x in inputs.values()) < 2**20


@pytest.mark.parametrize(("operator", "case"), REDUCED, ids=str)
def test_formulations_compute_what_ours_does(operator, case):
    torch.manual_seed(0)
    problem = case.problem(EXACT)
    inputs = {name: x.requires_grad_() for name, x in problem.inputs.items()}
    out = problem.ours(**inputs)
    cotangent = torch.randn_like(out)
    gradients = torch.autograd.grad(out, list(inputs.values()), cotangent)
    same = {name: way for name, way in problem.others.items() if way.equivalent}
    assert same or operator == "neighborhood"
    for name, way in same.items():
        theirs = way.restore(way.function(**way.prepare(inputs)))
        torch.testing.assert_close(theirs, out, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
        found = torch.autograd.grad(theirs, list(inputs.values()), cotangent)
        for key, value, expected in zip(inputs, found, gradients, strict=True):
            torch.testing.assert_close(
                value, expected, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize(("operator", "case"), REDUCED, ids=str)
def test_everything_runs_in_bfloat16_with_gradients(operator, case):
    problem = case.problem(Draw(torch.device("cpu"), torch.bfloat16))
    for way in (Formulation(problem.ours), *problem.others.values()):
        inputs = {name: x.detach().requires_grad_() for name, x in way.prepare(problem.inputs).items()}
        out = way.function(**inputs)
        assert out.dtype == torch.bfloat16
        assert all(x.isfinite().all() for x in torch.autograd.grad(out, list(inputs.values()), torch.randn_like(out)))


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiled_formulations_are_whole_graphs(operator):
    problem = cases_of(operator)[0].reduced().problem(Draw(torch.device("cpu"), torch.float32))
    for way in problem.others.values():
        if way.compiled:
            inputs = way.prepare(problem.inputs)
            found = torch.compile(way.function, fullgraph=True, dynamic=False, backend="aot_eager")(**inputs)
            torch.testing.assert_close(found, way.function(**inputs))


def test_nchw_memory():
    problem = cases_of("large_kernel")[0].reduced().problem(EXACT)
    way = problem.others["torch nchw"]
    inputs = way.prepare(problem.inputs)
    assert inputs["x"].permute(0, 3, 1, 2).is_contiguous() and not inputs["x"].is_contiguous()
    assert way.function(**inputs).permute(0, 3, 1, 2).is_contiguous()
