"""Linear attention as an operator of torch: its contract, export, autocast, FLOPs, bad input."""

import pytest
import torch
from linear_cases import SETTINGS, Case
from neighborhood_cases import distance
from operator_contract import Call, OperatorContract
from torch.utils.flop_counter import FlopCounterMode

import saccade
from saccade.kernels.linear import linear_attention

CASES = [
    Case((3, 2), (3, 2), "focused", "focused", "divide", value_dim=4),
    Case((5,), (2, 3), "identity", "identity", "subtract", seed=1),
    Case((2, 2), (2, 2), "norm_aware_query", "norm_aware_key", "divide", rotary=True, seed=2),
    Case((4,), (4,), "elu_plus_one", "elu_plus_one", "magnitude_aware", weight=True, rotary=True, seed=3),
    Case((3,), (4,), "softmax_channels", "softmax_tokens", "none", seed=4),
    Case((3,), (3,), "favor_query", "favor_key", "divide", seed=5),
    Case((2, 3), (2, 3), "hedgehog", "hedgehog", "divide_clamped", seed=6),
]
SHARED = frozenset({"query_parameter", "key_parameter", "query_rotary", "key_rotary"})


@pytest.mark.parametrize("problem", [Call(str(case), case.ours, case.tensors, SHARED) for case in CASES], ids=str)
class TestContract(OperatorContract):
    operator = "linear_attention"

    # What stabilises Performer's features is a constant to the gradient, but not to finite differences: their map adds
    # 1e-4 to what it stabilises.
    def test_gradcheck(self, problem):
        if "favor" not in problem.name:
            super().test_gradcheck(problem)


def test_compile_once_for_changing_sizes():
    compilations = []

    def count(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    function = torch.compile(
        lambda qkv: linear_attention(*qkv.unbind(3), "focused", mean=True), fullgraph=True, backend=count
    )
    for size in ((8, 9), (10, 6), (6, 30), (16, 15), (1, 2)):
        qkv = torch.randn(3, *size, 3, 2, 4)
        assert distance(function(qkv), linear_attention(*qkv.unbind(3), "focused", mean=True)) < 1e-6
    assert len(compilations) <= 2 + 1, "one static compilation, one with dynamic sizes, one for an axis of length one"


def test_export():
    class Attend(torch.nn.Module):
        def forward(self, qkv):
            return linear_attention(*qkv.unbind(3), normalizer="subtract", mean=True)

    sizes = {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.export.export(Attend(), (torch.randn(2, 8, 6, 3, 2, 4),), dynamic_shapes=(sizes,))
    other = torch.randn(2, 4, 12, 3, 2, 4)
    assert torch.equal(program.module()(other), Attend()(other))


def test_autocast_casts_the_tokens_and_keeps_the_rest():
    tensors = CASES[0].tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = CASES[0].ours(**{**tensors, "k": tensors["k"].bfloat16()})
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in tensors.values())
    with torch.autocast("cpu", torch.bfloat16):
        assert CASES[0].ours(**CASES[0].tensors()).dtype == torch.float64


def test_flops_are_counted():
    q = torch.randn(2, 5, 6, 3, 8, requires_grad=True)
    k = torch.randn(2, 7, 3, 8, requires_grad=True)
    v = torch.randn(2, 7, 3, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = linear_attention(q, k, v, "hedgehog")
        forward = counter.get_total_flops()
        out.sum().backward()
    features, heads = 16, 2 * 3
    products = heads * features * ((30 + 7) * 4 + 30)
    assert forward == 2 * products
    assert counter.get_total_flops() - forward == 6 * products


def test_operations_grow_linearly_with_tokens():
    flops = []
    for side in (28, 56, 112):
        q = torch.randn(1, side, side, 2, 8, device="meta")
        with FlopCounterMode(display=False) as counter:
            linear_attention(q, q, q, "focused")
        flops.append(counter.get_total_flops())
    assert flops[1] == 4 * flops[0] and flops[2] == 4 * flops[1]


def test_explain():
    q = torch.zeros(1, 4, 2, 4)
    assert "-> forward  blocked   runs" in saccade.explain(linear_attention, q, q, q, "focused").splitlines()
    told = saccade.explain(linear_attention, q, q, q, "softmax_channels", "softmax_tokens").splitlines()
    assert "   forward  blocked   with softmax_tokens a token's features depend on all tokens" in told
    assert "-> backward reference runs" in told
    with saccade.backend("blocked"), pytest.raises(RuntimeError, match="blocked: with favor_key a token's features"):
        linear_attention(q, q, q, "favor_query", "favor_key")


GOOD = torch.zeros(2, 6, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_map": "nope"}, r"query_map='nope' is unknown; valid: identity, relu, .*focused"),
        ({"key_map": "nope"}, r"key_map='nope' is unknown; valid: identity"),
        ({"normalizer": "softmax"}, r"normalizer='softmax' is unknown; valid: none, divide, .*magnitude_aware"),
        ({"power": 0}, r"power=0.0 must be more than 0"),
        ({"q": GOOD[0]}, r"q has shape \[6, 2, 4\]; valid: \[B, \*spatial, heads, D\] with at least one spatial axis"),
        ({"q": GOOD.long()}, r"q has dtype torch.int64; valid: float16"),
        ({"q": GOOD[:, :0]}, r"q has shape \[2, 0, 2, 4\]; valid: tokens, heads and D of at least 1"),
        ({"k": GOOD[:1]}, r"k has shape \[1, 6, 2, 4\]; valid: \[2, \*spatial, 2, 4\], the batch, heads and D of q"),
        ({"k": GOOD.double()}, r"k has dtype torch.float64; valid: that of q, torch.float32"),
        ({"v": GOOD[:, :5]}, r"v has shape \[2, 5, 2, 4\]; valid: that of k up to the last axis, \[2, 6, 2\]"),
        ({"v": GOOD.to("meta")}, r"v is on meta; valid: the device of q, cpu"),
        ({"key_weight": GOOD}, r"key_weight has shape \[2, 6, 2, 4\]; valid: \[2, 6, 2\]"),
        ({"query_parameter": GOOD[0, 0]}, r"query_parameter is given, but the map 'identity' takes none; valid: None"),
        (
            {"query_map": "focused", "key_parameter": GOOD[0]},
            r"key_parameter has shape \[6, 2, 4\]; valid: \[2, 4\]",
        ),
        (
            {"query_map": "hedgehog", "key_parameter": GOOD[0, 0]},
            r"key_parameter has shape \[2, 4\]; valid: \[heads, D, features\]",
        ),
        (
            {"query_map": "hedgehog", "key_parameter": GOOD[0]},
            r"key_parameter has shape \[6, 2, 4\]; valid: \[2, 4, 4\]",
        ),
        (
            {"query_map": "norm_aware_query", "key_map": "relu"},
            r"query_map='norm_aware_query' makes 8 features and key_map='relu' 4; valid: as many of each",
        ),
        ({"query_rotary": GOOD[:, :5, 0]}, r"query_rotary has shape \[2, 5, 4\]; valid: \[2, 6, 4\]"),
        ({"key_rotary": GOOD[:, :, 0].half()}, r"key_rotary has dtype torch.float16; valid: that of q, torch.float32"),
        (
            {"q": GOOD[..., :3], "k": GOOD[..., :3], "key_rotary": GOOD[:, :, 0, :3]},
            r"key_rotary turns pairs of features, and there are 3; valid: an even number",
        ),
    ],
)
def test_bad_input_is_told_in_one_error(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        linear_attention(**{"q": GOOD, "k": GOOD, "v": GOOD, **arguments})


def test_settings_differ_from_the_defaults():
    """The cases test every number by not leaving it at its default."""
    defaults = linear_attention.__kwdefaults__
    assert all(defaults[name] != value for name, value in SETTINGS.items())
