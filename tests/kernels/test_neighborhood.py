"""Neighborhood attention is what its oracles say: NATTEN's flex backend, old NATTEN's numbers, dense attention."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from neighborhood_cases import Case, cases, distance

import saccade
from saccade.kernels.neighborhood import blocked, neighborhood_attention, reference
from saccade.kernels.neighborhood import natten as natten_backend
from saccade.kernels.neighborhood.geometry import geometry

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "na_ops.json").read_text())["cases"]
BACKENDS = ("reference", "blocked")


def gradients(case: Case, backend: str, dtype=torch.float64):
    """Return output, log-sum-exp and all gradients for fixed cotangents."""
    inputs = [x.detach().requires_grad_() for x in case.tensors(dtype) if x is not None]
    with saccade.backend(backend):
        out, lse = neighborhood_attention(
            *inputs[:3], **case.settings, bias=inputs[3] if case.bias else None, return_lse=True
        )
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        loss = (out * weight).sum() + (lse * lse).sum()
        return [out, lse, *torch.autograd.grad(loss, inputs)]


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_blocked_equals_reference(case):
    for value, truth in zip(gradients(case, "blocked"), gradients(case, "reference"), strict=True):
        assert distance(value, truth) < 1e-10


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_blocked_equals_reference_in_small_chunks(case):
    whole = gradients(case, "blocked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "CHUNK", 300)
        for value, truth in zip(gradients(case, "blocked"), whole, strict=True):
            assert distance(value, truth) < 1e-10


@settings(max_examples=40, deadline=None)
@given(case=cases(bias=False, dims=(8, 16)))
def test_equals_natten_flex(case):
    # Where the windows cover the whole map NATTEN calls an attention that has no CPU backend.
    assume(case.window != case.shape)
    natten = pytest.importorskip("natten")
    attend = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}[len(case.shape)]
    q, k, v, _ = case.tensors(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex_attention asks to be compiled
        truth = attend(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            kernel_size=case.window,
            stride=case.stride,
            dilation=case.dilation,
            is_causal=case.causal,
            backend="flex-fna",
            torch_compile=False,
        )
    for backend in BACKENDS:
        with saccade.backend(backend):
            assert distance(neighborhood_attention(q, k, v, **case.settings), truth) < 2e-6


def test_natten_backend():
    """Its calls run here on NATTEN's flex backend; asked by name it says what it lacks on this machine."""
    pytest.importorskip("natten")
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 11, 3, 2, 16).unbind(-3)
    settings = ((3, 5), (2, 1), (2, 1), (False, True))
    call = geometry((9, 11), *settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex_attention asks to be compiled
        ours = natten_backend.forward(*(x.contiguous() for x in (q, k, v)), None, call, 0.3)
    for value, truth in zip(ours, reference.forward(q, k, v, None, call, 0.3), strict=True):
        assert value.shape == truth.shape and distance(value, truth) < 2e-6
    assert natten_backend.unsupported("backward", q, k, v, None, call) == "computes no gradients"
    with saccade.backend("natten"), pytest.raises(RuntimeError, match="natten: needs CUDA tensors, got cpu"):
        neighborhood_attention(q, k, v, 3)


def dense_mask(case: Case):
    """Return [N, N] booleans and flat bias entries from the definition in words, by brute force over pairs."""
    axes = []
    for axis in geometry(case.shape, case.window, (1,) * len(case.shape), case.dilation, case.causal).axes:
        inside = torch.zeros(axis.length, axis.length, dtype=torch.bool)
        entry = torch.zeros(axis.length, axis.length, dtype=torch.long)
        for query in range(axis.length):
            group = [t for t in range(axis.length) if t % axis.dilation == query % axis.dilation]
            place = group.index(query)
            if axis.causal:
                near = group[max(0, place - axis.window + 1) : place + 1]
            else:  # the window of keys whose centre is nearest to the query
                starts = range(len(group) - axis.window + 1)
                first = min(starts, key=lambda s: (abs(s + axis.window // 2 - place), s))
                near = group[first : first + axis.window]
            for key in near:
                inside[query, key] = True
                entry[query, key] = (key - query) // axis.dilation + axis.window - 1
        axes.append((inside, entry, axis.window))
    inside, entry = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    for axis_inside, axis_entry, window in axes:
        inside = torch.kron(inside.long(), axis_inside.long()).bool()
        ones = torch.ones_like(axis_entry)
        entry = torch.kron(entry, ones) * (2 * window - 1) + torch.kron(torch.ones_like(entry), axis_entry)
    return inside, entry


@settings(max_examples=25, deadline=None)
@given(case=cases(slack=(12, 5, 2), max_window=5))
def test_equals_dense_masked_attention(case):
    case.stride = (1,) * len(case.shape)
    inputs = [x.detach().requires_grad_() for x in case.tensors() if x is not None]
    q, k, v = (x.flatten(1, -3).transpose(1, 2) for x in inputs[:3])
    inside, entry = dense_mask(case)
    mask = torch.zeros(inside.shape, dtype=torch.float64).masked_fill(~inside, float("-inf"))
    if case.bias:
        mask = mask + inputs[3].flatten(1)[:, entry]
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    truth = truth.transpose(1, 2).reshape(inputs[2].shape)
    weight = torch.linspace(-1, 1, truth.numel(), dtype=truth.dtype).view_as(truth)
    true_gradients = torch.autograd.grad((truth * weight).sum(), inputs)
    for backend in BACKENDS:
        with saccade.backend(backend):
            out = neighborhood_attention(*inputs[:3], **case.settings, bias=inputs[3] if case.bias else None)
            found = torch.autograd.grad((out * weight).sum(), inputs)
        assert distance(out, truth) < 1e-12
        assert all(distance(value, true) < 1e-12 for value, true in zip(found, true_gradients, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: f"seed{golden['seed']}")
def test_equals_natten_0_17_5(golden, backend):
    generator = torch.Generator().manual_seed(golden["seed"])
    shape = (golden["batch"], golden["heads"], *golden["spatial"], golden["head_dim"])
    inputs = {name: torch.randn(shape, generator=generator) for name in ("dq", "dk", "dv")}
    if golden["rpb"]:
        bias_shape = (golden["heads"], *(2 * w - 1 for w in golden["kernel_size"]))
        inputs["drpb"] = torch.randn(bias_shape, generator=generator)
    for x in inputs.values():
        x.requires_grad_()
    q, k, v = (inputs[name].movedim(1, -2) for name in ("dq", "dk", "dv"))
    scale = golden["scale"]
    with saccade.backend(backend):
        out = neighborhood_attention(
            q,
            k,
            v,
            golden["kernel_size"],
            dilation=golden["dilation"],
            causal=golden["is_causal"],
            bias=inputs.get("drpb"),
            scale=None if scale == "head_dim**-0.5" else scale,
        ).movedim(-2, 1)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(golden["seed"] + 1000))
        found = dict(zip(inputs, torch.autograd.grad((out * cotangent).sum(), list(inputs.values())), strict=True))
    first = torch.tensor(golden["out"])
    assert distance(out.flatten()[: len(first)], first) < 5e-6
    assert out.norm().item() == pytest.approx(golden["out_norm"], rel=5e-6)
    assert set(golden["grads"]) == set(found)
    for name, truth in golden["grads"].items():
        first = torch.tensor(truth["first"])
        assert distance(found[name].flatten()[: len(first)], first) < 1e-5
        assert found[name].norm().item() == pytest.approx(truth["norm"], rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 1e-6)])
def test_low_precision_stays_near_float64(backend, dtype, tolerance):
    case = Case((13, 9), (5, 3), (1, 1), (2, 1), (False, False), True, 2, 2, 16, seed=0)
    q, k, v, bias = case.tensors(dtype)
    rounded = [x.double().requires_grad_() for x in (q, k, v, bias)]
    inputs = [x.detach().requires_grad_() for x in (q, k, v, bias)]
    cotangent = torch.randn(v.shape).to(dtype)
    with saccade.backend("reference"):
        truth = neighborhood_attention(*rounded[:3], **case.settings, bias=rounded[3])
        true_gradients = torch.autograd.grad(truth, rounded, cotangent.double())
    with saccade.backend(backend):
        out = neighborhood_attention(*inputs[:3], **case.settings, bias=inputs[3])
        found = torch.autograd.grad(out, inputs, cotangent)
    assert out.dtype == dtype
    assert distance(out, truth) < tolerance
    for value, true in zip(found, true_gradients, strict=True):
        assert value.dtype == dtype
        assert distance(value, true) < tolerance
