"""Neighborhood attention on one packed projection equals that on its three parts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.neighborhood import neighborhood_attention, neighborhood_attention_packed
from saccade.kernels.neighborhood.packed import attention

CASES = [((6, 7), {"window": 3, "dilation": 2}), ((9,), {"window": 5, "stride": 2}), ((3, 4, 5), {"window": 3})]


def inputs(shape, window, dtype=torch.float64):
    torch.manual_seed(0)
    qkv = torch.randn(2, *shape, 3, 2, 4, dtype=dtype, requires_grad=True)
    bias = torch.randn(2, *(2 * window - 1 for _ in shape), dtype=dtype, requires_grad=True)
    return qkv, bias


@pytest.mark.parametrize("backend", ("reference", "blocked"))
@pytest.mark.parametrize("shape, settings", CASES)
def test_equals_the_parts(shape, settings, backend):
    qkv, bias = inputs(shape, settings["window"])
    with saccade.backend(backend):
        one = neighborhood_attention_packed(qkv, bias=bias, return_lse=True, **settings)
        two = neighborhood_attention(*qkv.unbind(-3), bias=bias, return_lse=True, **settings)
        weights = [torch.randn_like(x) for x in one]
        ours, theirs = (torch.autograd.grad(result, (qkv, bias), weights) for result in (one, two))
    for a, b in zip((*one, *ours), (*two, *theirs), strict=True):
        assert torch.equal(a, b)


def test_gradcheck_and_opcheck():
    qkv, bias = inputs((4, 5), 3)
    assert torch.autograd.gradcheck(lambda *x: neighborhood_attention_packed(x[0], 3, bias=x[1]), (qkv, bias))
    settings = ([3, 3], [1, 1], [1, 1], [False, False], 0.5, "auto")
    torch.library.opcheck(attention, (qkv, bias, *settings))
    torch.library.opcheck(attention, (qkv, None, *settings))


@pytest.mark.parametrize("bias_mapped", (False, True))
def test_vmap_and_per_sample_gradients(bias_mapped):
    qkv, bias = inputs((4, 5), 3)
    many = torch.stack([qkv.detach(), 2 * qkv.detach()])
    biases = torch.stack([bias.detach(), -bias.detach()]) if bias_mapped else bias.detach()

    def loss(qkv, bias):
        return neighborhood_attention_packed(qkv, 3, bias=bias).square().sum()

    each = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, 0 if bias_mapped else None))(many, biases)
    for i in range(2):
        single = torch.func.grad(loss, (0, 1))(many[i], biases[i] if bias_mapped else biases)
        for a, b in zip(each, single, strict=True):
            torch.testing.assert_close(a[i], b)


def test_compiles_and_counts_as_many_operations():
    qkv, bias = inputs((6, 6), 3, torch.float32)
    counts = []
    for call in (
        lambda: neighborhood_attention_packed(qkv, 3, bias=bias),
        lambda: neighborhood_attention(*qkv.unbind(-3), 3, bias=bias),
    ):
        with FlopCounterMode(display=False) as counter:
            call().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    compiled = torch.compile(neighborhood_attention_packed, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(neighborhood_attention_packed(qkv, 3, bias=bias).sum(), (qkv, bias))
    for a, b in zip(torch.autograd.grad(compiled(qkv, 3, bias=bias).sum(), (qkv, bias)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_shape_is_told():
    with pytest.raises(ValueError, match=r"qkv has shape \[2, 6, 2, 4\]; valid: \[B, \*spatial, 3, heads, D\]"):
        neighborhood_attention_packed(torch.zeros(2, 6, 2, 4), 3)
    assert "blocked" in saccade.explain(neighborhood_attention_packed, torch.zeros(1, 8, 8, 3, 2, 4), 3)
