"""GELU as compilers get it: as exact as float32, and its slope with it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from saccade.kernels.gelu import gelu


def with_slope(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    return out.detach(), *torch.autograd.grad(out.sum(), x)


def test_is_as_exact_as_float32():
    x = torch.linspace(-12, 12, 4096)
    (out, slope), (truth, true_slope) = with_slope(gelu, x), with_slope(F.gelu, x.double())
    assert ((out - truth).abs() / x.abs().clamp(min=1)).max() < 2e-7
    assert ((out - truth).abs() / truth.abs())[x >= -2].max() < 1.5e-6
    assert (slope - true_slope).abs().max() < 3e-7
    with torch.no_grad():
        assert torch.equal(gelu(x), out)


def test_ends():
    nan, infinite, lowest, zero = gelu(torch.tensor([float("nan"), float("inf"), -1e30, 0.0])).tolist()
    assert nan != nan and infinite == float("inf") and abs(lowest) < 1e-9 and zero == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    x = torch.linspace(-12, 12, 4096).to(dtype)
    out = gelu(x)
    assert out.dtype == dtype
    assert torch.equal(out, gelu(x.float()).to(dtype))


def test_compiles_inside_checkpointed_blocks():
    torch.manual_seed(0)
    torch._dynamo.reset()
    linear, x = torch.nn.Linear(8, 4), torch.randn(16, 8)

    def block(act, x):
        return checkpoint(lambda x: linear(act(2 * x)), x, use_reentrant=False)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    found, truth = (with_slope(lambda x, f=f, act=act: f(act, x), x) for f, act in ((compiled, gelu), (block, F.gelu)))
    torch.testing.assert_close(found, truth)
