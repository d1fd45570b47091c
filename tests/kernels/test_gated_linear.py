"""Gated linear attention against its recurrence, against official numbers, in low precision, and its memory."""

import json

import pytest
import torch
from gated_linear_cases import Case, cases
from hypothesis import given, settings
from neighborhood_cases import distance
from torch.nn.functional import logsigmoid

from saccade.kernels.gated_linear import gated_linear_attention

from ..fill import GOLDENS
from ..memory import peak_bytes
from ..official_modules import assert_float64, float64_inputs

GOLDEN = json.loads((GOLDENS / "gated_linear_ops.json").read_text())["cases"]


def gradients(function, tensors):
    out = function(**tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, torch.autograd.grad((out * weight).sum(), list(tensors.values()))


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_equals_the_recurrence(case):
    tensors = case.tensors()
    out, found = gradients(case.ours, tensors)
    truth, true = gradients(case.truth, tensors)
    assert distance(out, truth) < 1e-12
    for name, value, reference in zip(tensors, found, true, strict=True):
        if name.endswith("log_gate") and case.resets:
            # The derivative of exp at minus infinity is 0; what comes out of the recurrence there is not a number.
            reset = tensors[name].isinf()
            assert not value[reset].any()
            value, reference = value[~reset], reference[~reset]
        assert distance(value, reference) < 1e-12, name


@pytest.mark.parametrize("case", [c for c in GOLDEN if c["op"] == "gla_bidirectional"], ids=lambda case: case["case"])
def test_official_scans(case):
    inputs = float64_inputs(case)
    q, k, v, *logits = (x.transpose(1, 2) for x in inputs.values())
    out = gated_linear_attention(q, k, v, *(logsigmoid(x) / case["kwargs"]["gate_logit_normalizer"] for x in logits))
    assert_float64(case, inputs, out.transpose(1, 2))


@pytest.mark.parametrize("decay", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 2e-6)])
def test_low_precision_stays_near_float64(dtype, tolerance, decay):
    """Also where gates decay by what a sum of their logarithms from the start would lose."""
    case = Case((20, 20), decay=decay, dim=16, value_dim=16)
    tensors = {
        name: x.detach().to(torch.float32 if name.endswith("log_gate") else dtype).requires_grad_()
        for name, x in case.tensors().items()
    }
    rounded = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    truth, out = case.ours(**rounded), case.ours(**tensors)
    cotangent = torch.randn(truth.shape).to(dtype)
    true = torch.autograd.grad(truth, list(rounded.values()), cotangent.double())
    found = torch.autograd.grad(out, list(tensors.values()), cotangent)
    assert out.dtype == dtype
    assert distance(out, truth) < tolerance
    for name, value, reference in zip(tensors, found, true, strict=True):
        assert value.dtype == tensors[name].dtype
        # With next to no memory the gates have next to no gradient.
        assert distance(value, reference) < tolerance * (5 if name.endswith("log_gate") else 1), name


def test_a_gate_of_zero_forgets():
    tensors = Case((70,), both=False, seed=3).tensors()
    tensors["log_gate"].data[:, 41] = float("-inf")
    late = {name: x[:, 41:] for name, x in tensors.items()}
    assert distance(gated_linear_attention(**tensors)[:, 41:], gated_linear_attention(**late)) < 1e-12


def test_without_decay_a_scan_is_causal_linear_attention():
    tensors = Case((50,), decay=0.0, seed=4).tensors()
    q, k, v = (tensors[name].transpose(1, 2) for name in "qkv")
    pairs = q @ k.mT * q.shape[-1] ** -0.5
    causal = gated_linear_attention(**{name: x for name, x in tensors.items() if name != "reverse_log_gate"})
    assert distance(causal, (pairs.tril() @ v).transpose(1, 2)) < 1e-12
    mean = (pairs.tril() + pairs.triu()) / 2
    assert distance(gated_linear_attention(**tensors), (mean @ v).transpose(1, 2)) < 1e-12


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_memory_grows_with_the_tokens():
    """Twice the tokens take twice the memory, and with gradients less than a quarter of a state a token."""
    peaks = []
    for tokens in (2048, 4096):
        tensors = Case((tokens,), batch=1, dim=64, value_dim=64).tensors(torch.float32)
        peaks.append(peak_bytes(lambda tensors: gated_linear_attention(**tensors).sum().backward(), tensors))
    print(f"peaks of {peaks} bytes")
    assert 1.8 * peaks[0] < peaks[1] < 2.1 * peaks[0]
    assert peaks[1] < 4 * 4096 * 2 * 64 * 64 * 2 / 4
