"""The fused kernels compile for a GPU that this machine need not have."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# The driver stands in for one of a Hopper GPU, and kernels are compiled instead of launched.
SCRIPT = """
import json, sys
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


driver.set_active(Driver())
launch.BoundKernel.__call__ = compile
from saccade.kernels.neighborhood import fused
from saccade.kernels.neighborhood.geometry import geometry

sizes = {}
for shape, window, dilation, width in json.loads(sys.argv[1]):
    rank = len(shape)
    call = geometry(shape, (window,) * rank, (1,) * rank, (dilation,) * rank, (False,) * rank)
    q, k, v = torch.empty(2, *shape, 3, 2, width, dtype=torch.bfloat16).unbind(-3)
    bias = torch.empty(2, *(2 * window - 1,) * rank)
    out, lse = fused.forward(q, k, v, bias, call, 0.2)
    fused.backward(out, torch.empty_like(lse), q, k, v, bias, out, lse, call, 0.2)
print(json.dumps(sizes))
"""
KERNELS = {
    "attend_block",
    "attend_chunks",
    "build_tables",
    "differentiate_group",
    "differentiate_keys",
    "differentiate_keys_chunks",
    "differentiate_queries",
    "differentiate_queries_chunks",
    "sum_partial",
}


def test_every_kernel_compiles():
    cases = [((7, 7), 7, 1, 32), ((40, 60), 7, 1, 32), ((30, 30), 3, 2, 64), ((40, 40), 13, 1, 64)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(cases)]
    run = subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    sizes = json.loads(run.stdout.splitlines()[-1])
    assert set(sizes) == KERNELS
    assert min(sizes.values()) > 1000
