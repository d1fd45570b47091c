"""Gated linear attention as an operator of torch: its contract, compile, export, autocast, FLOPs, bad input."""

import pytest
import torch
from gated_linear_cases import Case
from neighborhood_cases import distance
from operator_contract import Call, OperatorContract
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.gated_linear import gated_linear_attention

CASES = [
    Case((3, 2), seed=1),
    Case((37,), both=False, batch=1, heads=1, dim=2, value_dim=2, decay=1.0, seed=2),
    Case((5, 7), batch=1, heads=1, dim=2, value_dim=3, decay=3.0, seed=3),
    Case((1,), seed=4),
]


@pytest.mark.parametrize("problem", [Call(str(case), case.ours, case.tensors) for case in CASES], ids=str)
class TestContract(OperatorContract):
    operator = "gated_linear_attention"


def test_compile_once_for_changing_sizes():
    compilations = []

    def count(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    def attend(packed):
        q, k, v, *logits = packed.unbind(3)
        return gated_linear_attention(q, k, v, *(torch.nn.functional.logsigmoid(x) for x in logits))

    function = torch.compile(attend, fullgraph=True, backend=count)
    for size in ((8, 9), (10, 6), (6, 30), (16, 15)):
        packed = torch.randn(3, *size, 5, 2, 4)
        assert distance(function(packed), attend(packed)) < 1e-6
    assert len(compilations) <= 2, "one static compilation and one with dynamic sizes"


def test_export():
    class Attend(torch.nn.Module):
        def forward(self, packed):
            q, k, v, gate = packed.unbind(3)
            return gated_linear_attention(q, k, v, -gate.abs())

    sizes = {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.export.export(Attend(), (torch.randn(2, 8, 6, 4, 2, 4),), dynamic_shapes=(sizes,))
    other = torch.randn(2, 4, 12, 4, 2, 4)
    assert torch.equal(program.module()(other), Attend()(other))


def test_autocast_casts_tokens_and_keeps_the_gates():
    tensors = Case((4, 4)).tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = gated_linear_attention(**tensors)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in tensors.values())


@pytest.mark.parametrize("scans", [1, 2])
def test_flops_are_counted(scans):
    q, k, *gates = (torch.zeros(2, 8, 9, 3, 16, requires_grad=True) for _ in range(2 + scans))
    v = torch.randn(2, 8, 9, 3, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = gated_linear_attention(q, k, v, *gates)
        forward = counter.get_total_flops()
        out.sum().backward()
    # 72 tokens are three chunks of 32.
    pairs, states = 2 * 3 * 96 * 32, 2 * 3 * 96 * 16 * 5 * scans
    assert forward == 2 * pairs * (16 + 5) + 4 * states
    assert counter.get_total_flops() - forward == 2 * pairs * (3 * 16 + 2 * 5) + 10 * states


def test_explain():
    told = saccade.explain(gated_linear_attention, GOOD, GOOD, GOOD, GOOD)
    assert told.startswith("-> forward  reference runs")


GOOD = torch.zeros(2, 6, 9, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_gate": GOOD[..., :1]}, r"log_gate has shape \[2, 6, 9, 2, 1\]; valid: \[2, 6, 9, 2, 4\]"),
        ({"log_gate": GOOD.half()}, r"log_gate has dtype torch.float16; valid: that of q, torch.float32"),
        ({"reverse_log_gate": GOOD[:1]}, r"reverse_log_gate has shape \[1, 6, 9, 2, 4\]; valid: \[2, 6, 9, 2, 4\]"),
        ({"reverse_log_gate": GOOD.to("meta")}, r"reverse_log_gate is on meta; valid: the device of q, cpu"),
        ({"k": GOOD.double()}, r"k has dtype torch.float64; valid: that of q, torch.float32"),
        ({"k": GOOD[:1]}, r"k has shape \[1, 6, 9, 2, 4\]; valid: that of q"),
        ({"v": GOOD[:, :3]}, r"v has shape \[2, 3, 9, 2, 4\]; valid: that of q up to the last axis"),
        ({"q": GOOD.long(), "k": GOOD.long(), "v": GOOD.long()}, r"q has dtype torch.int64; valid: float16"),
        ({"q": GOOD[0, 0]}, r"q has shape \[9, 2, 4\]; valid: \[B, \*spatial, heads, D\]"),
        (dict.fromkeys(("q", "k", "v", "log_gate"), GOOD[:, :0]), r"valid: at least one token along each spatial axis"),
    ],
)
def test_bad_input_is_told_in_one_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**{"q": GOOD, "k": GOOD, "v": GOOD, "log_gate": GOOD, **arguments})
