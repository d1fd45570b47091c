"""Efficient, performer, hedgehog, cosine, lightnet, transnormer and sigmoid attention: definitions, options, range."""

import copy

import pytest
import torch
from neighborhood_cases import distance
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from saccade.layers import build_core, build_mixer
from saccade.layers.transnormer import SimpleRMSNorm

from ..official_modules import random

VARIANTS = [
    ("efficient", {}),
    ("efficient", {"key_dim": 24, "value_dim": 8}),
    ("performer", {}),
    ("performer", {"kernel": "relu", "features": 7, "equal_lengths": True}),
    ("performer", {"kernel": "none"}),
    ("hedgehog", {}),
    ("hedgehog", {"kind": "exp", "features": 5}),
    ("hedgehog", {"kind": "half", "bias": True}),
    ("hedgehog", {"kind": "relu", "shared_heads": True}),
    ("hedgehog", {"kind": "joint", "shared_map": True}),
    ("hedgehog", {"skip": True}),
    ("cosine", {}),
    ("lightnet", {}),
    ("lightnet", {"positions": True, "affine": True, "gate_dim": 3}),
    ("transnormer", {}),
    ("transnormer", {"act": "relu", "norm": "layer", "rotary": False}),
    ("transnormer", {"block": 4}),
    ("transnormer", {"block": 3, "block_weights": "relu"}),
    ("transnormer_v2", {"act": "elu"}),
    ("sigmoid", {}),
    ("sigmoid", {"qk_norm": True, "temperature": 0.5}),
]
variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
linear = pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if v[0] != "sigmoid"], ids=str)


def tokens(*shape, count=3):
    return [random([*shape], seed).double() for seed in range(count)]


@variants
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3)])
def test_any_map(name, options, size):
    mixer = build_mixer(name, 16, 2, **options)
    x = random([2, *size, 16], 0).requires_grad_()
    out = mixer(x)
    out.square().sum().backward()
    assert out.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("name", ["efficient", "performer", "hedgehog", "cosine", "lightnet", "transnormer", "sigmoid"])
@pytest.mark.parametrize(("dim", "heads"), [(3, 3), (5, 1), (6, 2)])
def test_heads_of_any_width(name, dim, heads):
    assert build_mixer(name, dim, heads)(random([1, 4, 3, dim], 0)).isfinite().all()


@variants
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_stays_near_float64(name, options, dtype, tolerance):
    """With weights of that dtype, and under autocast."""
    torch.manual_seed(0)
    mixer = build_mixer(name, 64, 4, **{**options, **({"key_dim": 32} if "key_dim" in options else {})}).double()
    x = random([2, 14, 14, 64], 0).double()
    truth = mixer(x)
    assert distance(copy.deepcopy(mixer).to(dtype)(x.to(dtype)), truth) < tolerance
    with torch.autocast("cpu", dtype):
        assert distance(mixer.float()(x.float()), truth) < tolerance


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_large_inputs_stay_finite(name, options, dtype):
    torch.manual_seed(0)
    mixer = build_mixer(name, 16, 2, **options).to(dtype)
    x = (100 * random([2, 14, 14, 16], 0)).to(dtype).requires_grad_()
    out = mixer(x)
    out.backward(torch.full_like(out, out.numel() ** -0.5))
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@linear
def test_operations_grow_linearly_with_tokens(name, options):
    flops = []
    with torch.device("meta"):
        mixer = build_mixer(name, 16, 2, **options)
        for side in (24, 48):
            with FlopCounterMode(display=False) as counter:
                mixer(torch.empty(1, side, side, 16))
            flops.append(counter.get_total_flops())
    assert flops[1] == 4 * flops[0]


def test_lightnet_with_prefix_tokens():
    mixer = build_mixer("lightnet", 16, 2, positions=True)
    x = random([2, 3, 4, 16], 0)
    assert torch.equal(mixer(x.flatten(1, 2), (3, 4)), mixer(x).flatten(1, 2))
    out = mixer(torch.cat((random([2, 1, 16], 1), x.flatten(1, 2)), 1), (3, 4))
    assert not torch.isclose(out[:, 1:], mixer(x).flatten(1, 2)).all()


def test_efficient_scaling_is_the_mean_of_products():
    q, k, v = tokens(2, 12, 8)
    out = build_core("efficient", 8, 2, normalization="scaling")(q, k, v, (3, 4))
    parts = (x.unflatten(-1, (2, 4)) for x in (q, k, v))
    torch.testing.assert_close(out, torch.einsum("bnhd,bmhd,bmhe->bnhe", *parts).flatten(-2) / 12)


def test_performer_estimates_softmax_attention():
    """Better with more features, up to what is added to each of them."""
    torch.manual_seed(0)
    q, k, v = tokens(2, 30, 16)
    q, k = q / 2, k / 2
    truth = build_core("softmax", 16, 2)(q, k, v, (5, 6))
    few, many = (
        distance(build_core("performer", 16, 2, features=count).double()(q, k, v, (5, 6)), truth)
        for count in (16, 16384)
    )
    assert few > 3 * many
    assert distance(v.mean(1, keepdim=True).expand_as(truth), truth) > 3 * many


def test_performer_keeps_its_directions():
    """They come from torch's generator, are part of the state dict, and no forward pass changes them."""
    x = random([1, 4, 3, 16], 0)
    mixers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        mixers.append(build_mixer("performer", 16, 2))
    first, same, other = (mixer.core.projection_matrix for mixer in mixers)
    assert first.shape == (16, 8)
    assert torch.equal(first, same) and not torch.equal(first, other)
    mixer, _, other = mixers
    out = mixer(x)
    assert torch.equal(mixer.eval()(x), out) and torch.equal(mixer.train()(x), out)
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x), out)
    mixer.core.redraw()
    assert not torch.isclose(mixer(x), out).all()


def test_performer_redraws_where_training_goes_on():
    core = build_core("performer", 16, 2, redraws=True)
    first = core.projection_matrix
    core.train()
    assert torch.equal(core.projection_matrix, first)
    core.eval()
    assert torch.equal(core.projection_matrix, first)
    resumed = copy.deepcopy(build_core("performer", 16, 2, redraws=True))
    resumed.load_state_dict(core.state_dict())
    for again in (core, resumed):
        torch.manual_seed(1)
        again.train()
    assert not torch.isclose(core.projection_matrix, first).all()
    assert torch.equal(core.projection_matrix, resumed.projection_matrix)


@pytest.mark.parametrize("options", [{}, {"skip": True, "shared_map": True}], ids=str)
def test_hedgehog_starts_as_softmax_of_channels(options):
    q, k, v = tokens(2, 12, 8)
    core = build_core("hedgehog", 8, 2, **options).double()
    assert len(list(core.parameters())) == (1 if options else 2)
    out = core(q, k, v, (3, 4))
    features = [torch.cat((x.softmax(-1), (-x).softmax(-1)), -1) for x in (y.unflatten(-1, (2, 4)) for y in (q, k))]
    weights = torch.einsum("bnhd,bmhd->bhnm", *features)
    truth = torch.einsum("bhnm,bmhe->bnhe", weights / weights.sum(-1, keepdim=True), v.unflatten(-1, (2, 4)))
    torch.testing.assert_close(out, truth.flatten(-2))


def test_cosine_by_all_pairs():
    q, k, v = tokens(2, 12, 8)
    core = build_core("cosine", 8, 2).double()
    core.exponent.data = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    q, k, v = (x.unflatten(-1, (2, 4)) for x in (q, k, v))
    cosines = torch.einsum("bnhd,bmhd->bhnm", F.normalize(q, dim=-1), F.normalize(k, dim=-1))
    cosines = cosines / 12 ** core.exponent.sigmoid()[:, None, None]
    out = core(*(x.flatten(-2) for x in (q, k, v)), (3, 4))
    torch.testing.assert_close(out, torch.einsum("bhnm,bmhe->bnhe", cosines, v).flatten(-2))


@pytest.mark.parametrize(("options", "shift"), [({}, None), ({"bias": -1.5, "temperature": 0.3}, -1.5)], ids=str)
@pytest.mark.parametrize("size", [(3, 4), (1, 5)])
def test_sigmoid_by_all_pairs(options, shift, size):
    """By default the bias is minus the logarithm of however many keys there are."""
    count = size[0] * size[1]
    q, k, v = tokens(2, count, 8)
    out = build_core("sigmoid", 8, 2, **options)(q, k, v, size)
    q, k, v = (x.unflatten(-1, (2, 4)) for x in (q, k, v))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * 0.5 * torch.tensor(options.get("temperature", 0.0)).double().exp()
    bias = -torch.tensor(float(count)).double().log() if shift is None else shift
    torch.testing.assert_close(out, torch.einsum("bhnm,bmhe->bnhe", (scores + bias).sigmoid(), v).flatten(-2))


def test_lightnet_positions_by_all_pairs():
    """Products of features are weighted by the cosine of how much their angles differ."""
    q, k, v = tokens(2, 12, 10)
    core = build_core("lightnet", 10, 2, positions=True).double()
    core.theta.data = random([2, 3], 5).double()
    out = core(q, k, v, (3, 4))
    q, k, v = (x.unflatten(-1, (2, 5)) for x in (q, k, v))
    place = torch.arange(12)
    places = torch.stack((place // 4, place % 4)).double()
    angles = torch.einsum("an,hc->nhac", places, core.theta).flatten(-2)[..., :5]
    differences = torch.cos(angles[:, None] - angles[None])
    truth = torch.einsum("bnhc,bmhc,nmhc,bmhe->bnhe", F.silu(q), k.softmax(1), differences, v)
    torch.testing.assert_close(out, truth.flatten(-2))


def test_transnormer_sees_relative_places():
    """Tokens that move together by so many rows and columns attend alike, and a last odd channel does not turn."""
    core = build_core("transnormer", 10, 2).double()
    q, k, v = tokens(1, 6, 10)
    whole = [F.pad(x.unflatten(1, (2, 3)), (0, 0, 3, 1, 2, 0)) for x in (q, k, v)]
    core.act = "relu"
    out = core(*(x.flatten(1, 2) for x in whole), whole[0].shape[1:3]).unflatten(1, whole[0].shape[1:3])
    torch.testing.assert_close(out[:, 2:, 3:6].flatten(1, 2), core(q, k, v, (2, 3)))
    assert not torch.isclose(core(q, k, v, (3, 2)), core(q, k, v, (2, 3))).all()
    turned = core.rotation(q.unflatten(-1, (2, 5)), torch.arange(12).view(2, 6).double())
    still = core.rotation(q.unflatten(-1, (2, 5)), torch.zeros(2, 6).double())
    torch.testing.assert_close(turned[..., 4], still[..., 4])
    torch.testing.assert_close(turned.norm(dim=-1), q.unflatten(-1, (2, 5)).norm(dim=-1))


@pytest.mark.parametrize("weights", ["softmax", "relu"])
def test_transnormer_blocks(weights):
    """Windows count from the map's first token, and the zeros that fill the last ones are keys."""
    core = build_core("transnormer", 8, 2, block=4, block_weights=weights, rotary=False)
    maps = [x.unflatten(1, (5, 7)) for x in tokens(2, 35, 8)]
    out = core(*(x.flatten(1, 2) for x in maps), (5, 7)).unflatten(1, (5, 7))
    for rows, columns in ((slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))):
        q, k, v = (F.pad(x, (0, 0, 0, 1, 0, 3))[:, rows, columns].flatten(1, 2).unflatten(-1, (2, 4)) for x in maps)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 2
        found = torch.einsum("bhnm,bmhe->bnhe", scores.softmax(-1) if weights == "softmax" else scores.relu(), v)
        found = found.flatten(-2)
        if weights == "relu":
            found = SimpleRMSNorm()(found)
        expected = out[:, rows, columns]
        found = found.unflatten(1, (4, 4))[:, : expected.shape[1], : expected.shape[2]]
        torch.testing.assert_close(found, expected)


def test_norm_of_nothing_has_a_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    SimpleRMSNorm()(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficient", {"key_dim": 7}, "key_dim=7 must be a multiple of num_heads=2"),
        ("efficient", {"value_dim": 0}, "value_dim=0 must be a multiple of num_heads=2"),
        ("efficient", {"normalization": "x"}, "normalization='x' is unknown; valid: softmax, scaling"),
        ("performer", {"kernel": "x"}, "kernel='x' is unknown; valid: softmax, relu, none"),
        ("performer", {"features": 0}, "features=0 must be at least 1"),
        ("hedgehog", {"kind": "x"}, "kind='x' is unknown; valid: softmax, exp, half, relu, joint"),
        ("hedgehog", {"features": 0}, "features=0 must be at least 1"),
        ("hedgehog", {"features": 3, "skip": True}, "features=3 must be .* 8, those of a head"),
        ("transnormer", {"act": "x"}, "act='x' is unknown; valid: elu_plus_one, elu"),
        ("transnormer", {"norm": "x"}, "norm='x' is unknown; valid: rms, layer"),
        ("transnormer", {"block": 0}, "block=0 must be at least 1, or None"),
        ("transnormer", {"block_weights": "x"}, "block_weights='x' is unknown; valid: softmax, relu"),
        ("transnormer_v2", {"kernel_size": 4}, "kernel_size=4 must be odd and at least 1, or None"),
        ("sigmoid", {"num_heads": 3}, "dim=16 must be a multiple of num_heads=3"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer(name, 16, **{"num_heads": 2, **options})


def test_blocks_need_the_whole_map():
    mixer = build_mixer("transnormer", 16, 2, block=2)
    with pytest.raises(ValueError, match="block=2 needs one map of queries and keys, without prefix tokens"):
        mixer(random([1, 13, 16], 0), (3, 4))
