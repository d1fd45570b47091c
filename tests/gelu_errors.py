"""How far the GELU of fused kernels and its slope are from torch's in float64."""

import torch
import triton
import triton.language as tl

from saccade.kernels.fused_gelu import gelu, gelu_slope

COUNT = 4096


@triton.jit
def _activate(x_ptr, gelu_ptr, slope_ptr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    x = tl.load(x_ptr + at)
    tl.store(gelu_ptr + at, gelu(x))
    tl.store(slope_ptr + at, gelu_slope(x))


def activate(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return GELU and its slope at COUNT numbers, in float64 on the CPU."""
    out, slope = torch.empty_like(x), torch.empty_like(x)
    _activate[(1,)](x, out, slope, COUNT)
    return out.double().cpu(), slope.double().cpu()


def errors(device: str = "cpu") -> dict[str, float]:
    """Return the largest errors of both, and of GELU relative to itself from -2 on."""
    x = torch.linspace(-12, 12, COUNT)
    exact = x.double().requires_grad_()
    truth = torch.nn.functional.gelu(exact)
    (true_slope,) = torch.autograd.grad(truth.sum(), exact)
    out, slope = activate(x.to(device))
    distance = (out - truth.detach()).abs()
    return {
        "gelu": (distance / x.abs().clamp(min=1)).max().item(),
        "slope": (slope - true_slope).abs().max().item(),
        "relative": (distance / truth.detach().abs())[x >= -2].max().item(),
    }


def at_the_ends(device: str = "cpu") -> list[float]:
    """Return GELU of what is not finite or far out."""
    x = torch.zeros(COUNT)
    x[:4] = torch.tensor([float("nan"), float("inf"), -1e30, 0.0])
    return activate(x.to(device))[0][:4].tolist()


def check(found: dict[str, float], ends: list[float]) -> None:
    assert found["gelu"] < 2e-7 and found["slope"] < 3e-7 and found["relative"] < 1.5e-6, found
    nan, infinite, lowest, zero = ends
    assert nan != nan and infinite == float("inf") and abs(lowest) < 1e-9 and zero == 0, ends
