"""Agent attention against torch's softmax attention, in low precision, and as an operator of torch."""

import pytest
import torch
from agent_cases import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from neighborhood_cases import distance
from operator_contract import Call, OperatorContract
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.agent import agent_attention, blocked

CASES = [
    Case((3, 2), (3, 2), (2, 2)),
    Case((5,), (2, 3), (1, 3), query_bias=False, seed=1),
    Case((2, 2), (4,), (3,), agent_bias=False, query_bias=False, seed=2),
]
GRID = st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple)


@pytest.mark.parametrize(
    "problem",
    [Call(str(case), case.ours, case.tensors, frozenset({"agent_bias", "query_bias"})) for case in CASES],
    ids=str,
)
class TestContract(OperatorContract):
    operator = "agent_attention"


@settings(max_examples=60, deadline=None)
@given(grids=st.tuples(GRID, GRID, GRID), biases=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 999))
def test_equals_two_softmax_attentions(grids, biases, seed):
    case = Case(*grids, *biases, seed=seed)
    tensors = case.tensors()
    out, truth = case.ours(**tensors), case.truth(**tensors)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    found, true = (torch.autograd.grad(x, list(tensors.values()), cotangent) for x in (out, truth))
    assert distance(out, truth) < 1e-12
    assert all(distance(value, reference) < 1e-12 for value, reference in zip(found, true, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blocks_equal_the_reference(case, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 24)
    tensors = case.tensors()
    with saccade.backend("reference"):
        truth = case.ours(**tensors)
    with torch.no_grad(), saccade.backend("blocked"):
        assert distance(case.ours(**tensors), truth) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 3e-6)])
def test_low_precision_stays_near_float64(dtype, tolerance):
    case = Case((56, 56), (56, 56), (3, 3), heads=2, dim=32, value_dim=32)
    exact = case.tensors()
    rounded = {name: x.detach().to(dtype).requires_grad_() for name, x in exact.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in rounded.items()}
    truth, out = case.ours(**exact), case.ours(**rounded)
    true, found = (torch.autograd.grad(x.sum(), list(t.values())) for x, t in ((truth, exact), (out, rounded)))
    assert out.dtype == dtype
    assert distance(out, truth) < tolerance
    for value, reference in zip(found, true, strict=True):
        assert value.dtype == dtype
        assert distance(value, reference) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_large_inputs_stay_finite(dtype):
    case = Case((14, 14), (14, 14), (7, 7), heads=2, dim=32, value_dim=32)
    tensors = {name: (100 * x.detach()).to(dtype).requires_grad_() for name, x in case.tensors().items()}
    out = agent_attention(**tensors)
    gradients = torch.autograd.grad(out, list(tensors.values()), 100 * torch.ones_like(out))
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_export():
    class Attend(torch.nn.Module):
        def forward(self, qkv):
            q, k, v = qkv.unbind(3)
            return agent_attention(q, k, v, q.mean((1, 2), keepdim=True))

    sizes = {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.export.export(Attend(), (torch.randn(2, 8, 6, 3, 2, 4),), dynamic_shapes=(sizes,))
    other = torch.randn(2, 4, 12, 3, 2, 4)
    assert torch.equal(program.module()(other), Attend()(other))


def test_autocast_casts_the_tokens_and_keeps_the_biases():
    tensors = CASES[0].tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = CASES[0].ours(**{**tensors, "agents": tensors["agents"].bfloat16()})
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in tensors.values())


def test_flops_are_counted():
    case = Case((5, 6), (7,), (2, 2), heads=3, dim=8, value_dim=4)
    with FlopCounterMode(display=False) as counter:
        out = case.ours(**case.tensors(torch.float32))
        forward = counter.get_total_flops()
        out.sum().backward()
    pairs = 2 * 3 * 4 * (30 + 7)
    assert forward == 2 * pairs * (8 + 4)
    assert counter.get_total_flops() - forward == 2 * pairs * (3 * 8 + 2 * 4)


def test_explain():
    q = torch.zeros(1, 4, 2, 4)
    told = saccade.explain(agent_attention, q, q, q, q[:, :2]).splitlines()
    assert told[1] == "-> forward  blocked   runs"
    assert told[4:] == ["   backward blocked   it has no gradient of its own", "-> backward reference runs"]
    assert all(line[3:].split()[1] == "fused" for line in (told[0], told[3]))


GOOD = torch.zeros(2, 6, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": GOOD[0]}, r"q has shape \[6, 2, 4\]; valid: \[B, \*spatial, heads, D\]"),
        ({"agents": GOOD[:, :, :1]}, r"agents has shape \[2, 6, 1, 4\]; valid: \[2, \*spatial, 2, 4\], the batch,"),
        ({"agents": GOOD[:, :0]}, r"agents has shape \[2, 0, 2, 4\]; valid: .* at least one agent"),
        ({"agents": GOOD.half()}, r"agents has dtype torch.float16; valid: that of q, torch.float32"),
        ({"agents": GOOD.to("meta")}, r"agents is on meta; valid: the device of q, cpu"),
        ({"agent_bias": torch.zeros(2, 6, 3)}, r"agent_bias has shape \[2, 6, 3\]; valid: \[2, 3, 6\]"),
        ({"query_bias": torch.zeros(2, 3, 6)}, r"query_bias has shape \[2, 3, 6\]; valid: \[2, 6, 3\]"),
        ({"query_bias": torch.zeros(2, 6, 3).half()}, r"query_bias has dtype torch.float16; valid: that of q, torch.f"),
        ({"agent_bias": torch.zeros(2, 3, 6).to("meta")}, r"agent_bias is on meta; valid: the device of q, cpu"),
    ],
)
def test_bad_input_is_told_in_one_error(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        agent_attention(**{"q": GOOD, "k": GOOD, "v": GOOD, "agents": GOOD[:, :3], **arguments})
