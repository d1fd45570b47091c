"""The fused kernels in Triton's interpreter, on a CPU, against the definition in float64."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# Triton decides when it is imported whether it interprets, so the cases run in processes of their own.
SCRIPT = """
import json, sys
import torch
from saccade.kernels.neighborhood import fused, fused_config, fused_plan, reference
from saccade.kernels.neighborhood.geometry import geometry


def errors(case):
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in case["config"].items()}
    fused_plan.choose = (lambda *call: fused_config.Config(**chosen)) if chosen else fused_config.choose
    fused._plans.made.clear()
    torch.manual_seed(0)
    shape, heads, width, dtype = case["shape"], case["heads"], case["width"], getattr(torch, case["dtype"])
    settings = [tuple(case[name]) for name in ("window", "stride", "dilation", "causal")]
    call = geometry(shape, *settings)
    # Views inside NaN: what a kernel reads beside them, or leaves unwritten, shows.
    packed = torch.full((case["batch"], *(n + 3 for n in shape), 3, heads + 1, width + 8), float("nan"), dtype=dtype)
    view = packed[(slice(None), *(slice(1, n + 1) for n in shape), slice(None), slice(heads), slice(width))]
    view.normal_()
    q, k, v = view.unbind(-3)
    bias = torch.randn(heads, *(2 * w - 1 for w in settings[0])) if case["bias"] else None
    assert fused.unsupported("forward", q, k, v, bias, call) is None
    out, lse = fused.forward(q, k, v, bias, call, 0.3)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    if case["packed"]:
        gradients = torch.full(view.shape, float("nan"), dtype=dtype).unbind(-3)
        dbias = fused.backward_into(gradients, dout, dlse, q, k, v, bias, out, lse, call, 0.3)
        ours = (out, lse, *gradients, dbias)
    else:
        ours = (out, lse, *fused.backward(dout, dlse, q, k, v, bias, out, lse, call, 0.3))
    exact = [None if x is None else x.double() for x in (q, k, v, bias)]
    true = reference.forward(*exact, call, 0.3)
    true = (*true, *reference.backward(dout.double(), dlse.double(), *exact, *true, call, 0.3))
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, true) if b is not None]

torch.use_deterministic_algorithms(True)
print(json.dumps({name: errors(case) for name, case in json.loads(sys.argv[1]).items()}))
"""
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}


def case(
    shape,
    window,
    stride=1,
    dilation=1,
    causal=False,
    bias=True,
    dtype="float16",
    width=16,
    config=None,
    batch=1,
    packed=False,
):
    rank = len(shape)
    settings = {
        name: list(value) if isinstance(value, tuple) else [value] * rank
        for name, value in (("window", window), ("stride", stride), ("dilation", dilation), ("causal", causal))
    }
    return dict(
        shape=shape,
        bias=bias,
        dtype=dtype,
        width=width,
        config=config or {},
        batch=batch,
        packed=packed,
        heads=2,
        **settings,
    )


SMALL = {"tile": [1, 2, 4], "rows": 16, "warps": 1}
CASES = {
    "group": case((7, 7), 7, batch=3, packed=True),
    "group, dilated, uneven": case((9, 10), 3, dilation=2),
    "whole": case((8, 9), 7, packed=True),
    "whole, exact": case((6, 6), 5, dtype="float32", width=8),
    "whole, runs of tiles": case((4, 20), 3, config=dict(SMALL, chunk=32, programs=4, held=False)),
    "whole, causal and strided": case((7, 8), 5, (2, 3), causal=(True, False), config=dict(SMALL, chunk=32)),
    "runs of tiles, dilated, uneven groups": case((6, 31), 3, dilation=2, config=dict(SMALL, chunk=32, programs=2)),
    "chunks": case((4, 20), 3, batch=3, config=dict(SMALL, chunk=32, whole=False, programs=4, items=2), packed=True),
    "chunks, no bias": case((7, 8), (4, 6), (3, 4), bias=False, width=24, config=dict(SMALL, chunk=32, whole=False)),
    "built tables": case((8, 9), (3, 5), config=dict(SMALL, chunk=64, stored=False)),
    "one axis": case((24,), 9, dilation=2, causal=True),
    "three axes": case((3, 4, 3), 3, dilation=(1, 1, 1), causal=(False, True, False)),
}


@pytest.mark.parametrize("part", range(3))
def test_interpreted_kernels_equal_the_definition(part):
    cases = dict(list(CASES.items())[part::3])
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(cases)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name, errors in json.loads(run.stdout.splitlines()[-1]).items():
        assert len(errors) == 5 + CASES[name]["bias"], name
        assert max(errors) < TOLERANCE[CASES[name]["dtype"]], (name, errors)
