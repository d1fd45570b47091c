"""The fused kernels compile for a GPU that this machine need not have."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# The driver stands in for one of a Hopper GPU, and kernels are compiled instead of launched.
PREPARE = """
import json
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from saccade.kernels import launch


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile(self, *tensors):
    kernel = self.kernel.warmup(*tensors, *self.arguments, grid=self.grid, **self.keywords)
    sizes[self.kernel.__name__] = len(kernel.asm["cubin"])


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype)


driver.set_active(Driver())
launch.BoundKernel.__call__ = compile
sizes = {}
"""
CALLS = {
    "neighborhood": """
from saccade.kernels.neighborhood import fused
from saccade.kernels.neighborhood.geometry import geometry

cases = ((7, 7), 7, 1, 32), ((40, 60), 7, 1, 32), ((30, 30), 3, 2, 64), ((40, 40), 13, 1, 64)
for shape, window, dilation, width in cases:
    call = geometry(shape, (window,) * 2, (1,) * 2, (dilation,) * 2, (False,) * 2)
    q, k, v = empty(2, *shape, 3, 2, width).unbind(-3)
    bias = empty(2, *(2 * window - 1,) * 2, dtype=torch.float32)
    out, lse = fused.forward(q, k, v, bias, call, 0.2)
    fused.backward(out, torch.empty_like(lse), q, k, v, bias, out, lse, call, 0.2)
""",
    "window": """
from saccade.kernels.window import fused

def both(window, width, bias, mask):
    q, k, v = empty(2, 4 * window, 4 * window, 3, 2, width).unbind(-3)
    tables = (bias and empty(2, window**2, window**2, dtype=bias), mask and empty(16, window**2, window**2, dtype=mask))
    out, lse = fused.forward(q, k, v, *tables, (window, window), 0.2)
    fused.backward(out, torch.empty_like(lse), q, k, v, *tables, out, lse, (window, window), 0.2)


both(2, 32, None, None)
both(7, 32, torch.bfloat16, torch.bool)
both(7, 32, torch.float32, torch.float32)
both(14, 32, torch.float32, torch.float32)
both(16, 128, None, None)
""",
    "linear": """
from saccade.kernels.linear import fused
from saccade.kernels.linear.reference import Form


def run(name, heads, dtype, weighted=False, parameters=(), rotated=False, power=3.0):
    q, k, v = empty(2, 784, 3, heads, 32, dtype=dtype).unbind(-3)
    weight = empty(2, 784, heads, dtype=dtype) if weighted else None
    parameters = [empty(*shape, dtype=dtype) for shape in parameters] or [None, None]
    rotaries = [empty(2, 784, 32, dtype=torch.float32) if rotated else None] * 2
    tensors, form = (q, k, v, weight, *parameters, *rotaries), Form(name, name, "divide", 1.0, True, power, 1e-6)
    out, *saved = fused.forward(tensors, form)
    fused.backward(out, tensors, (*saved, out), [x is not None for x in tensors[:6]] + [False, False], form)


run("focused", 2, torch.bfloat16, parameters=[(2, 32)] * 2)
run("elu_plus_one", 4, torch.bfloat16, weighted=True, rotated=True)
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    run("focused", 8, dtype)
run("focused", 8, torch.bfloat16, power=2.5)
run("focused", 8, torch.bfloat16, weighted=True)
""",
    "agent": """
from saccade.kernels.agent import fused

for agents, width, dtype in (9, 32, torch.bfloat16), (49, 64, torch.bfloat16), (64, 128, torch.float16):
    q, k, v = empty(2, 784, 3, 2, width, dtype=dtype).unbind(-3)
    biases = empty(2, agents, 784, dtype=dtype), empty(2, 784, agents, dtype=dtype)
    call = (q, k, v, empty(2, agents, 2, width, dtype=dtype), *biases)
    out, *saved = fused.forward(*call, 0.2)
    fused.backward(out, *call, *saved, 0.2)
""",
    "depthwise": """
from saccade.kernels.depthwise import fused

x = empty(2, 14, 14, 96)
for kernel in (3, 13):
    call = (x, empty(96, 1, kernel, kernel), None, (1, 1), "gelu", True)
    fused.forward(*call)
    fused.backward(x, *call)
call = (x, empty(96, 1, 3, 3), None, (1, 1), None, False)
fused.backward(x, *call, empty(96, dtype=torch.float32))
# Of the kernel one row can meet the map.
for activation in (None, "gelu"):
    call = (empty(2, 2, 5, 96), empty(96, 1, 3, 3), None, (2, 1), activation, False)
    fused.forward(*call)
    fused.backward(call[0], *call)
weight = empty(96, 1, 3, 5)
fused.correlate_gelu(x, x, weight, None, (1, 1), fused.taps(weight))
""",
    "batch_norm": """
from saccade.kernels.batch_norm import fused

sums = [empty(320, dtype=torch.float32) for _ in range(4)]
for dtype in (torch.float32, torch.bfloat16):
    x = empty(2, 14, 14, 320, dtype=dtype)
    out, *moments = fused.forward(x, *sums[:2], 1e-5, torch.bfloat16)
    fused.backward(out, x, *moments, *sums[:2], 1e-5)
""",
    "large_kernel": """
from saccade.kernels.large_kernel import fused
from saccade.kernels.large_kernel.parameters import Parameters

for channels, activation, dtype in (64, None, torch.bfloat16), (192, "gelu", torch.float32):
    x = empty(2, 28, 28, channels)
    shapes = ((channels, 1, 5, 5), (channels, 1, 7, 7), (channels, channels), (channels,), (channels,), (channels,))
    parameters = Parameters(*(empty(*shape, dtype=dtype) for shape in shapes))
    out, kept = fused.forward(x, parameters, (3, 3), activation)
    fused.backward(out, x, kept, parameters, (3, 3))
""",
    "focal": """
from saccade.kernels.focal import fused

for channels, kernels, side in (96, (3, 5), 28), (96, (7, 9), 28), (192, (3, 5), 28), (96, (3, 5), 1):
    weights = [empty(channels, 1, k, k) for k in kernels]
    call = (empty(2, side, side, 2 * channels + 16), weights, empty(channels, channels), empty(channels), False)
    fused.backward(*fused.forward(*call, True), *call)
""",
}
KERNELS = {
    "neighborhood": {
        "attend_block",
        "attend_chunks",
        "build_tables",
        "differentiate_group",
        "differentiate_keys",
        "differentiate_keys_chunks",
        "differentiate_queries",
        "differentiate_queries_chunks",
        "sum_partial",
    },
    "window": {
        "attend_rows",
        "attend_windows",
        "differentiate_columns",
        "differentiate_rows",
        "differentiate_windows",
    },
    "linear": {
        "apply",
        "apply_focused",
        "balance",
        "differentiate_focused_keys",
        "differentiate_focused_queries",
        "differentiate_keys",
        "differentiate_packed_keys",
        "differentiate_tokens",
        "measure",
        "reduce",
        "reduce_focused",
        "settle",
        "total",
    },
    "agent": {"differentiate_keys", "differentiate_queries", "gather", "merge", "read"},
    "depthwise": {
        "arrange",
        "convolve",
        "convolve_strips",
        "correlate",
        "correlate_gelu_strips",
        "correlate_strips",
        "settle",
        "total",
    },
    "batch_norm": {"differentiate", "normalize", "settle", "sum_rows"},
    "large_kernel": {
        "activate_entries",
        "arrange_both",
        "convolve_strips",
        "correlate_strips",
        "differentiate_point",
        "differentiate_weight",
        "project",
        "settle",
    },
    "focal": {
        "arrange",
        "convolve_strips",
        "correlate",
        "correlate_strips",
        "differentiate_gates",
        "differentiate_last",
        "differentiate_level",
        "differentiate_level_strips",
        "differentiate_point",
        "differentiate_weight",
        "focus",
        "focus_strips",
        "gather",
        "modulate",
        "project",
        "settle",
    },
}


@pytest.mark.parametrize("operator", CALLS)
def test_every_kernel_compiles(operator):
    script = PREPARE + CALLS[operator] + "print(json.dumps(sizes))"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    sizes = json.loads(run.stdout.splitlines()[-1])
    assert set(sizes) == KERNELS[operator]
    assert min(sizes.values()) > 1000
