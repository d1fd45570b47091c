"""Mixers, and blocks of families, against the released modules, in float64."""

import json
from functools import partial

import pytest
import torch
from neighborhood_cases import distance
from torch import nn

from saccade.kernels.gated_linear import gated_linear_attention
from saccade.kernels.linear.feature_maps import FEATURE_MAPS
from saccade.layers import LocalConcentration, build_core, build_mixer
from saccade.layers.attention_core import Layout
from saccade.layers.performer import random_directions
from saccade.models.checkpoint import rename
from saccade.models.gated_pyramid import OFFICIAL_NAMES as GATED_NAMES
from saccade.models.l2vit import L2ViT
from saccade.models.l2vit_checkpoint import OFFICIAL_NAMES as L2VIT_NAMES
from saccade.models.soft import SOFT
from saccade.models.soft_checkpoint import OFFICIAL_NAMES as SOFT_NAMES

from ..fill import GOLDENS, named_tensor, relative_error
from ..official_modules import assert_float64, float64_inputs

CASES = json.loads((GOLDENS / "linear_modules.json").read_text())["cases"]
CORE_CASES = json.loads((GOLDENS / "linear_ops.json").read_text())["cases"]
TOLERANCE = 1e-7
# The tables of rotary positions were made in float32, ours are in float64.
ROTARY_TOLERANCE = 1e-6


def of(cases, *ops):
    """Parametrise a test over the cases of some operators."""
    chosen = [case for case in cases if case["op"] in ops]
    assert {case["op"] for case in chosen} == set(ops)
    return pytest.mark.parametrize("case", chosen, ids=lambda case: f"{case['op']}-{case['case']}")


def locate(case, names, joined=()):
    """Return our parameter behind each official one of a case, and which of its rows that is.

    Args:
        names: (pattern, replacement) of `re.sub`, from official keys to ours.
        joined: names of ours, each with the official ones whose rows follow each other in it.
    """
    found = {key: (ours, slice(None)) for ours, key in rename({key: key for key in case["state"]}, names).items()}
    for ours, parts in joined:
        for leaf in ("weight", "bias"):
            start = 0
            for key in (f"{part}.{leaf}" for part in parts if f"{part}.{leaf}" in case["state"]):
                rows = case["state"][key][0]
                found[key] = (f"{ours}.{leaf}", slice(start, start + rows))
                start += rows
    return found


def run(case, module, places, call, tolerance=TOLERANCE):
    """Load the official weights, and compare output and gradients of `call(module, *inputs)`."""
    module.double().eval()
    own = module.state_dict()
    for key, (ours, rows) in places.items():
        if case.get("filled", True) and not key.endswith("num_batches_tracked"):
            own[ours][rows].copy_(named_tensor(key, case["state"][key]).reshape(own[ours][rows].shape))
    loaded = {ours for ours, _ in places.values()}
    assert not {key for key, _ in module.named_parameters()} - loaded
    inputs = float64_inputs(case)
    assert_float64(case, inputs, call(module, *inputs.values()), tolerance)
    parameters = dict(module.named_parameters())
    for key, norm in case["param_grad_norms"].items():
        ours, rows = places[key]
        assert abs(parameters[ours].grad[rows].norm().item() - norm) <= tolerance * max(norm, 1.0), key


def on_image(module, x):
    return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def on_tokens(module, x, rows=1):
    return module(x.unflatten(1, (rows, -1))).flatten(1, 2)


def on_heads(core, q, k, v):
    """Call a core with heads apart, [B, heads, N, D]."""
    tokens = (x.transpose(1, 2).flatten(-2) for x in (q, k, v))
    return core(*tokens, (1, q.shape[2])).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)


@of(CASES, "rope2d_rala")
def test_rotary_tables(case):
    kwargs = case["kwargs"]
    core = build_core("rala", kwargs["embed_dim"], kwargs["num_heads"])
    tables = core.turns(torch.empty(0), Layout(tuple(case["resolution"]), tuple(case["resolution"]), 0, None))[0]
    for table, reference in zip(tables, (case["cos"], case["sin"]), strict=True):
        assert list(table.shape) == reference["shape"]
        torch.testing.assert_close(table.flatten()[:64], torch.tensor(reference["first64"]))
        assert relative_error(table.double().norm(), reference["norm"]) < TOLERANCE
    torch.testing.assert_close(tables[1].flatten()[-8:], torch.tensor(case["sin"]["last8"]))


@of(CASES, "rala_linear", "rala_softmax", "mala_linear", "mala_softmax", "nala_linear", "nala_softmax")
def test_gated(case):
    family, kind = case["op"].split("_")
    options = {"gate": "silu", "normed": True} if family == "nala" else {}
    name = "rotary_softmax" if kind == "softmax" else family
    mixer = build_mixer(name, case["kwargs"]["dim"], case["kwargs"]["num_heads"], **options)
    names = [("^", ".attn."), *GATED_NAMES, (r"^\.mixer\.", "")]
    run(case, mixer, locate(case, names), on_image, ROTARY_TOLERANCE)


@of(CASES, "soft_block")
def test_soft_block(case):
    kwargs = case["kwargs"]
    sizes = {"embed_dims": (kwargs["dim"],) * 2, "depths": (1, 1), "num_heads": (kwargs["num_heads"],) * 2}
    model = SOFT(
        **sizes, ratios=(kwargs["ratio"],), kernel_sizes=(kwargs["conv_size"],),
        normalized=case["case"].startswith("norm"),
    )  # fmt: skip
    names = [("^", "block1.0."), *SOFT_NAMES, (r"^stages\.0\.blocks\.0\.", "")]
    run(case, model.stages[0].blocks[0], locate(case, names), partial(on_tokens, rows=8))


@of(CASES, "l2vit_linear")
def test_l2vit_linear(case):
    mixer = build_mixer("l2", case["kwargs"]["dim"], case["kwargs"]["num_heads"])
    run(case, mixer, locate(case, [("^temperature$", "core.temperature")]), on_tokens)


@of(CASES, "l2vit_lcm")
def test_local_concentration(case):
    module = LocalConcentration(case["kwargs"]["in_features"], norm=nn.Identity)

    def call(module, x):
        return on_tokens(module, x, rows=8) - x

    run(case, module, locate(case, []), call)


@of(CASES, "l2vit_block")
def test_l2vit_block(case):
    kwargs = case["kwargs"]
    model = L2ViT(kwargs["dim"], (2,), (kwargs["num_heads"],))
    linear = kwargs["cls"] == "LGABlock"
    names = [("^", "stages.0.0."), *L2VIT_NAMES, (r"^stages\.0\.blocks\.0\.", "")]
    run(case, model.stages[0].blocks[linear], locate(case, names), partial(on_tokens, rows=8 if linear else 9))


@of(CASES, "efficient_attention")
def test_efficient_attention(case):
    """The official module adds its input."""
    kwargs = case["kwargs"]
    mixer = build_mixer(
        "efficient", kwargs["in_channels"], kwargs["head_count"],
        key_dim=kwargs["key_channels"], value_dim=kwargs["value_channels"],
    )  # fmt: skip
    places = locate(case, [("^reprojection", "proj")], [("qkv", ("queries", "keys", "values"))])
    run(case, mixer, places, lambda module, x: x + on_image(module, x))


@of(CASES, "cottention")
def test_cottention(case):
    """The official module has no projection of the output."""
    mixer = build_mixer("cosine", case["kwargs"]["hidden_size"], case["kwargs"]["num_attention_heads"])
    mixer.proj = nn.Identity()
    places = locate(case, [("^norm_const$", "core.exponent")], [("qkv", ("query", "key", "value"))])
    run(case, mixer, places, on_tokens)


@of(CASES, "lightnet_noncausal")
def test_lightnet(case):
    mixer = build_mixer(
        "lightnet", case["kwargs"]["hidden_size"], case["kwargs"]["num_heads"], affine="norm.weight" in case["state"]
    )
    names = [("^to_qkv", "qkv"), ("^to_out", "proj"), ("^output_gate_proj", "gate")]
    run(case, mixer, locate(case, names), on_tokens)


@of(CASES, "lightnet_causal")
def test_causal_lightnet(case):
    """It is gated linear attention, of keys and gates made from their running sum of exponentials."""
    inputs = float64_inputs(case)
    q, k, v = (x.transpose(1, 2) for x in inputs.values())
    total = k.logcumsumexp(1)
    gates = torch.cat((torch.zeros_like(total[:, :1]), total[:, :-1] - total[:, 1:]), 1)
    out = gated_linear_attention(nn.functional.silu(q), (k - total).exp(), v, gates)
    assert_float64(case, inputs, out.transpose(1, 2))


TRANSNORMER_NAMES = [("^to_qkv", "qkv"), (r"^to_out\.0", "proj"), ("^norm", "core.norm"),
                     (r"^lrpe\.theta", "core.rotation.theta"), (r"^lrpe\.v", "core.rotation.normal")]  # fmt: skip
ACTS = {"1+elu": "elu_plus_one", "elu": "elu", "relu": "relu"}
NORMS = {"simplermsnorm": "rms", "layernorm": "layer"}


@of(CASES, "transnormer_normlinear", "transnormer_diagblock")
def test_transnormer(case):
    kwargs = case["kwargs"]
    options = {"rotary": kwargs["use_lrpe"], "norm": NORMS[kwargs.get("norm_type", "simplermsnorm")]}
    if "block_size" in kwargs:
        options |= {"block": kwargs["block_size"], "block_weights": "softmax" if kwargs["use_softmax"] else "relu"}
    else:
        options["act"] = ACTS[kwargs["act_fun"]]
    mixer = build_mixer("transnormer", kwargs["dim"], kwargs["num_heads"], **options)
    run(case, mixer, locate(case, TRANSNORMER_NAMES), partial(on_tokens, rows=kwargs["num_row_patches"]))


@of(CASES, "transnormer_v2_normlinear")
def test_transnormer_v2(case):
    kwargs = case["kwargs"]
    mixer = build_mixer(
        "transnormer_v2", kwargs["embed_dim"], kwargs["num_heads"],
        rotary=False, act=ACTS[kwargs["act_fun"]], norm=NORMS[kwargs["norm_type"]],
        gate={"identity": "linear", "silu": "silu"}[kwargs["uv_act_resolves_to"]],
    )  # fmt: skip
    joined = [("qkvg", ("q_proj", "k_proj", "v_proj", "u_proj"))]
    run(case, mixer, locate(case, [("^out_proj", "proj"), ("^norm", "core.norm")], joined), on_tokens)


@of(CASES, "sigmoid_attention")
def test_sigmoid_attention(case):
    kwargs = case["kwargs"]
    softmax = kwargs["activation"] == "softmax"
    options = {} if softmax else {"qk_norm": kwargs["qk_norm"]}
    if kwargs["attn_bias"] == 0.0 and not softmax:
        options["bias"] = 0.0
    mixer = build_mixer(kwargs["activation"], kwargs["dim"], kwargs["num_heads"], **options)
    places = locate(case, [("^([qk]_norm)", r"core.\1")])
    # Bias and temperature are options here, and were not filled.
    run(case, mixer, {key: place for key, place in places.items() if not key.startswith("attn_")}, on_tokens)


HEDGEHOG_KINDS = {("softmax_dim", True): "softmax", ("exp_dim", True): "exp",
                  ("softmax_dim", False): "half", ("relu", True): "relu"}  # fmt: skip


@of(CORE_CASES, "hedgehog")
def test_hedgehog_core(case):
    kwargs = case["kwargs"]
    core = build_core(
        "hedgehog", 32, 2, features=kwargs["feature_dim"], bias=kwargs.get("bias", False),
        kind=HEDGEHOG_KINDS[kwargs["activation"], kwargs["fullspace"]], skip=kwargs.get("skip_connection", False),
    )  # fmt: skip
    names = [("^feature_map_q", "query"), ("^feature_map_k", "key"), (r"\.mlp\.layer", "_map"), (r"\.mlp\.", "_")]
    run(case, core, locate(case, names), on_heads)


@of(CASES, "hedgehog_fla_map")
def test_joint_hedgehog_map(case):
    core = build_core("hedgehog", 32, 2, kind="joint")
    core.key_map, core.key_bias = None, None
    # The official layer is a linear one, whose weight has inputs last.
    places = {"layer.weight": ("query_map", 0), "layer.bias": ("query_bias", 0)}

    def call(core, x):
        with torch.no_grad():
            core.query_map.copy_(named_tensor("layer.weight", [16, 16]).mT)
        x = nn.functional.pad(x.transpose(1, 2), (0, 1), value=1.0)
        return FEATURE_MAPS["hedgehog_half"](x, core.matrix("query"), 1.0)[0].transpose(1, 2)

    run(case, core, places, call)


@of(CORE_CASES, "performer")
def test_performer_core(case):
    kwargs = case["kwargs"]
    kernel = "relu" if kwargs.get("generalized_attention") else "none" if kwargs.get("no_projection") else "softmax"
    core = build_core("performer", 32, 2, kernel=kernel, features=kwargs.get("nb_features"))
    places = {} if kernel == "none" else {"projection_matrix": ("projection_matrix", slice(None))}
    run({"param_grad_norms": {}} | case, core, places, on_heads)


@of(CORE_CASES, "efficient_attention", "cottention")
def test_other_cores(case):
    heads, width = case["inputs"][0]["shape"][1], case["inputs"][0]["shape"][-1]
    value_dim = heads * case["inputs"][2]["shape"][-1]
    if case["op"] == "cottention":
        core = build_core("cosine", heads * width, heads)
    else:
        core = build_core("efficient", heads * width, heads, value_dim=value_dim)
    run({"param_grad_norms": {}} | case, core, locate(case, [("^norm_const$", "exponent")]), on_heads)


@of(CASES, "performer")
def test_directions(case):
    """Rows are orthogonal in blocks, and as long as independent normal vectors, or all alike."""
    assert case["facts"]["blocks"] == "two full orthogonal blocks of 16 rows then 8 rows of a third"
    torch.manual_seed(0)
    rows, columns = case["kwargs"]["nb_rows"], case["kwargs"]["nb_columns"]
    directions = random_directions(rows, columns).double()
    lengths = directions.norm(dim=1)
    for block in (directions / lengths[:, None]).split(columns):
        assert distance(block @ block.mT, torch.eye(len(block), dtype=block.dtype)) < 1e-6
    # The square of a length has chi-squared's mean 16 and variance 32.
    many = random_directions(4096, columns).square().sum(1)
    assert many.mean().item() == pytest.approx(16, abs=0.4) and many.var().item() == pytest.approx(32, rel=0.1)
    torch.testing.assert_close(random_directions(rows, columns, True).norm(dim=1), torch.full((rows,), 4.0))
