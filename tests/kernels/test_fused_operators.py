"""The fused kernels of all operators but neighborhood attention in Triton's interpreter, against the definitions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# Triton decides when it is imported whether it interprets, so the cases run in processes of their own.
SCRIPT = """
import json, sys
import agent_cases, focal_cases, large_kernel_cases, linear_cases, window_cases
import torch
import saccade
from saccade.kernels.batch_norm import batch_norm
from saccade.kernels.depthwise import fused_gelu_plan
from saccade.kernels.large_kernel import fused_plan as point_plan
from saccade.kernels.linear import fused_plan
from saccade.kernels.window import window_attention

MAPS = ("q", "k", "v", "agents", "x", "projected", "add")


def window(q, k, v, bias=None, mask=None):
    out, lse = window_attention(q, k, v, CASE["window"], bias=bias, mask=mask, scale=0.3, return_lse=True)
    return out, lse.masked_fill(lse.isinf(), 0)


def inside_nan(x):
    '''View of equal values in a larger tensor of NaN: what a kernel reads beside it, or leaves unwritten, shows.'''
    larger = x.new_full((*x.shape[:-2], x.shape[-2] + 1, x.shape[-1] + 5), float("nan"))
    view = larger[..., : x.shape[-2], : x.shape[-1]]
    view.copy_(x)
    return view


def call(operator):
    if operator == "window":
        case = window_cases.Case(seed=0, **CASE)
        names = ("q", "k", "v", "bias", "mask")
        tensors = {name: x for name, x in zip(names, case.tensors()) if x is not None}
        return tensors, window
    if operator == "batch_norm":
        torch.manual_seed(0)
        x, weight, bias = (torch.randn(shape).double() for shape in (CASE["shape"], *[CASE["shape"][-1:]] * 2))
        # A sine, so that the gradient of the output is not nearly the same everywhere.
        return {"x": x * 2 + 5, "weight": weight, "bias": bias}, lambda **tensors: batch_norm(**tensors)[0].sin()
    if operator == "focal":
        case = focal_cases.Case(seed=0, **CASE)
        names = ("projected", "point_weight", "point_bias", *(f"weight{level}" for level in range(len(case.kernels))))
        tensors = {name: x.detach() for name, x in zip(names, case.inputs())}
        return tensors, lambda **tensors: case.ours(*tensors.values())
    if operator in ("depthwise_conv2d", "large_kernel_attention"):
        case = large_kernel_cases.Case(seed=0, **CASE)
        chosen = large_kernel_cases.widest(operator)
        inputs = [x.detach() * (1 if at == 0 else 0.3) for at, x in enumerate(chosen.inputs(case))]
        names = ("x", *(f"parameter{at}" for at in range(1, len(inputs))))
        options = {"dilation": case.dilation, **OPTIONS}
        tensors = dict(zip(names, inputs))
        if options.pop("add", False):
            tensors["add"] = case.addend()
        return tensors, lambda **tensors: chosen.ours(*[tensors.pop(name) for name in names], **tensors, **options)
    case = {"linear": linear_cases, "agent": agent_cases}[operator].Case(**CASE)
    tensors = {name: x.detach() for name, x in case.tensors().items()}
    return tensors, case.ours


def run(function, tensors, backend, weights):
    '''Outputs and gradients of all but the masks and the rotations.'''
    learned = [name for name in tensors if "rotary" not in name and name != "mask"]
    tensors = {name: x.detach().requires_grad_(name in learned) for name, x in tensors.items()}
    with saccade.backend(backend):
        outs = function(**tensors)
        outs = outs if isinstance(outs, tuple) else (outs,)
        total = sum((out.double() * weight).sum() for out, weight in zip(outs, weights(outs)))
        return [*outs, *torch.autograd.grad(total, [tensors[name] for name in learned])]


def kept(tensors, backend):
    '''What large kernel attention keeps for its gradient.'''
    settings = (CASE["dilation"], OPTIONS.get("activation"), backend)
    parameters = [*tensors.values(), None, None, None][:7]
    return [x for x in torch.ops.saccade.large_kernel_attention(*parameters, *settings)[1:] if x.numel()]


def weights(outs):
    return [torch.linspace(-1, 1, out.numel(), dtype=torch.float64).cos().view_as(out) for out in outs]


def errors(operator, dtype):
    tensors, function = call(operator)
    tensors = {name: x if x.dtype == torch.bool else x.to(getattr(torch, dtype)) for name, x in tensors.items()}
    held = {name: inside_nan(x) if name in MAPS else x for name, x in tensors.items()}
    exact = {name: x if x.dtype == torch.bool else x.double() for name, x in tensors.items()}
    ours, true = run(function, held, "fused", weights), run(function, exact, "reference", weights)
    if operator == "large_kernel_attention":
        ours, true = ours + kept(held, "fused"), true + kept(exact, "reference")
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, true)]


torch.use_deterministic_algorithms(True)
# So few programs that each takes several blocks of tokens, or strips.
fused_plan.PROGRAMS, fused_gelu_plan.PROGRAMS, fused_plan.MULTIPROCESSORS = 12, 2, 2
# Of float32 they would be slow on a GPU, but show the formulas best.
fused_plan.PACKED_PRODUCTS = ("tf32", "ieee")
operator, cases = sys.argv[1], json.loads(sys.argv[2])
found = {}
for name, CASE in cases.items():
    OPTIONS = CASE.pop("options", {})
    CASE = {key: tuple(value) if isinstance(value, list) else value for key, value in CASE.items()}
    dtypes = ("float32",) if len(found) > 1 else ("float32", "float16")
    found[name] = {dtype: errors(operator, dtype) for dtype in dtypes}
print(json.dumps(found))
"""
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}


def window(window, counts, bias=True, mask=None, heads=2, dim=16, value_dim=None):
    return {
        "window": window,
        "counts": counts,
        "bias": bias,
        "mask": mask,
        "batch": 2,
        "heads": heads,
        "dim": dim,
        "value_dim": value_dim or dim,
    }


def linear(query_map, key_map, normalizer, grid=(5, 7), key_grid=(4, 9), dim=16, value_dim=16, **options):
    names = {"query_map": query_map, "key_map": key_map, "normalizer": normalizer}
    return {"grid": grid, "key_grid": key_grid, "dim": dim, "value_dim": value_dim, **names, **options}


def agent(grid, key_grid, agent_grid, dim=16, value_dim=16, **options):
    sizes = {"grid": grid, "key_grid": key_grid, "agent_grid": agent_grid}
    return {**sizes, "dim": dim, "value_dim": value_dim, **options}


def convolution(shape, dilated_kernel=(7, 7), dilation=(1, 1), kernel=(5, 5), bias=True, **options):
    kernels = {"kernel": kernel, "dilated_kernel": dilated_kernel}
    return {"shape": shape, **kernels, "dilation": dilation, "bias": bias, "options": options}


def focal(shape, kernels, normalize=False):
    return {"shape": shape, "kernels": kernels, "normalize": normalize}


CASES = {
    "depthwise_conv2d": {
        "dilated": convolution((2, 7, 9, 20), dilation=(3, 3)),
        "uneven": convolution((1, 7, 5, 8), (3, 7), (2, 1), bias=False, residual=True),
        "tall": convolution((1, 10, 9, 5), (13, 3), (1, 2), activation="gelu"),
        "wide": convolution((1, 5, 9, 70), (3, 11), activation="gelu", residual=True),
        "by tiles": convolution((1, 9, 6, 10), (9, 9), activation="gelu", add=True),
        "added map": convolution((1, 7, 9, 40), (5, 5), add=True),
        "back in one pass": convolution((2, 5, 9, 70), (3, 3), activation="gelu", residual=True),
    },
    "large_kernel_attention": {
        "biased": convolution((2, 9, 11, 20), dilation=(3, 3)),
        "many channels": convolution((1, 7, 6, 130), dilation=(3, 3), kernel=(3, 3), bias=False, activation="gelu"),
        "by tiles": convolution((1, 7, 9, 12), dilation=(2, 2), kernel=(9, 9), activation="gelu"),
    },
    "focal": {
        "two levels": focal((2, 9, 11, 20), (3, 5), True),
        "side by side": focal((1, 5, 16, 96), (3, 5)),
        "many channels": focal((1, 6, 9, 130), (3, 5)),
        "one level": focal((1, 10, 8, 40), (3,)),
        "three levels": focal((2, 7, 7, 70), (3, 5, 7)),
        "by tiles": focal((1, 9, 10, 20), (3, 9, 9)),
    },
    "batch_norm": {
        "full blocks": {"shape": (2, 8, 8, 64)},
        "odd": {"shape": (3, 5, 7, 130)},
        "few channels": {"shape": (2, 9, 40, 5)},
    },
    "window": {
        "many in a tile": window((2, 2), (3, 5), bias=False),
        "many in a tile, bias and mask": window((2, 2), (5, 7), mask="boolean"),
        "uneven, wide values": window((3, 5), (2, 3), mask="additive", dim=8, value_dim=20),
        "one in a tile": window((7, 7), (2, 2), heads=3),
        "one axis": window((3,), (5,)),
        "three axes": window((2, 2, 2), (2, 1, 3), mask="boolean"),
        "tile forward, chunks backward": window((7, 10), (2, 1), mask="boolean"),
        "chunks": window((12, 12), (1, 2), mask="additive"),
    },
    "linear": {
        "focused": linear("focused", "focused", "divide"),
        "focused, full blocks": linear("focused", "focused", "divide", grid=(8, 8), key_grid=(8, 8), heads=3),
        "focused, many heads, weights": linear(
            "focused", "focused", "divide", heads=5, dim=8, value_dim=12, weight=True, grid=(9, 9)
        ),
        "focused, cubed": linear("focused", "focused", "divide", grid=(9, 9), dim=20, value_dim=9, heads=3, power=3.0),
        "focused, cubed, full blocks": linear("focused", "focused", "none", grid=(8, 8), key_grid=(8, 16), power=3.0),
        "focused, squared, weights": linear("focused", "focused", "divide", heads=1, weight=True, power=2.0),
        "focused, cubed, rotated": linear("focused", "elu_plus_one", "divide_clamped", rotary=True, power=3.0),
        "focused, cubed queries": linear("focused", "elu_plus_one", "divide_clamped", power=3.0),
        "focused, rotated": linear("focused", "focused", "subtract", rotary=True),
        "weights, rotated": linear("elu_plus_one", "elu_plus_one", "divide", weight=True, rotary=True),
        "magnitudes": linear("elu_plus_one", "elu_plus_one", "magnitude_aware", rotary=True),
        "odd widths": linear("relu", "relu", "divide_clamped", dim=20, value_dim=9),
        "plain": linear("identity", "identity", "subtract"),
        "by channels": linear("softmax_channels", "unit", "none"),
        "others": linear("silu", "exponential", "none"),
        "more": linear("elu", "leaky_relu", "none", weight=True),
    },
    "agent": {
        "both biases": agent((5, 7), (6, 9), (3, 3), heads=3),
        "odd widths": agent((10, 13), (10, 20), (2, 2), query_bias=False, dim=20, value_dim=9),
        "many agents": agent((7, 10), (3, 11), (7, 7), agent_bias=False, heads=1),
        "whole vectors": agent((8, 12), (16, 7), (5, 5)),
        "no bias": agent((4, 5), (4, 5), (4, 4), agent_bias=False, query_bias=False, dim=8, value_dim=8),
    },
}


@pytest.mark.parametrize("operator", CASES)
def test_interpreted_kernels_equal_the_definition(operator):
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
    )
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, operator, json.dumps(CASES[operator])]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert list(found) == list(CASES[operator])
    for name, by_dtype in found.items():
        for dtype, errors in by_dtype.items():
            assert all(error < TOLERANCE[dtype] for error in errors), (name, dtype, errors)
