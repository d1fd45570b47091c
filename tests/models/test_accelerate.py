"""`saccade.accelerate`: timm's models compute the same after the swap, keep their state, and the rest stays alone."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers.halo_attn import HaloAttn
from timm.models import maxxvit
from timm.models.focalnet import FocalNet
from timm.models.gcvit import GlobalContextVit
from timm.models.hieradet_sam2 import HieraDet
from timm.models.maxxvit import MaxxVitTransformerCfg
from torch import nn

import saccade
from saccade.models.accelerate import measured

SWIN = "swin_tiny_patch4_window7_224"
SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2)}
SMALL_MAXVIT = {"embed_dim": (32,) * 4, "depths": (1,) * 4}
LARGE_FOCAL = {
    "focal_levels": (3, 3),
    "focal_windows": (5, 5),
    "use_overlap_down": True,
    "use_post_norm": True,
    "use_post_norm_in_modulation": True,
    "layerscale_value": 0.1,
    "normalize_modulator": True,
}

# a model's name or class, its arguments, the size of the images, how many modules are swapped
MODELS = {
    "focalnet": (FocalNet, {"embed_dim": 16, "depths": (1, 1, 2, 1)}, (64, 96), 5),
    "focalnet, large": (FocalNet, {"embed_dim": 16, "depths": (1, 1), **LARGE_FOCAL}, (72, 56), 2),
    "swin": (SWIN, {**SMALL_SWIN, "img_size": (84, 56)}, (84, 56), 4),
    "swin, windows that end the map": (SWIN, {**SMALL_SWIN, "img_size": 40}, (40, 40), 4),
    "swin, any size": (SWIN, {**SMALL_SWIN, "strict_img_size": False, "always_partition": True}, (72, 100), 4),
    "autoformer v2": ("swin_s3_tiny_224", {**SMALL_SWIN, "window_size": (7, 14), "img_size": 112}, (112, 112), 4),
    "davit": ("davit_tiny", {"embed_dims": (24, 48), "depths": (1, 1), "num_heads": (2, 2)}, (72, 104), 2),
    "twins": (
        "twins_svt_small",
        {"embed_dims": (16, 32, 32, 32), "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 2)},
        (96, 160),
        4,
    ),
    "tiny_vit": (
        "tiny_vit_5m_224",
        {"embed_dims": (16, 32, 32, 32), "depths": (1, 1, 2, 1), "num_heads": (2, 2, 2, 2)},
        (96, 128),
        4,
    ),
    "gcvit": (
        GlobalContextVit,
        {"embed_dim": 16, "depths": (2,) * 4, "num_heads": (2,) * 4, "img_size": 128},
        (128, 128),
        4,
    ),
    "maxvit": ("maxvit_tiny_rw_224", {**SMALL_MAXVIT, "img_size": (96, 160)}, (96, 160), 8),
    "maxvit, tensorflow": ("maxvit_tiny_tf_224", {**SMALL_MAXVIT, "img_size": 160}, (160, 160), 8),
    "maxvit, even grids": ("maxvit_tiny_rw_224", {**SMALL_MAXVIT, "img_size": 128}, (128, 128), 4),
    "maxvit, position mlp": ("maxvit_rmlp_small_rw_224", {**SMALL_MAXVIT, "img_size": 96}, (96, 96), 4),
    "hiera": ("hiera_tiny_224", {"embed_dim": 24, "stages": (1, 2, 2, 1), "img_size": (64, 96)}, (64, 96), 2),
    "sam2": (
        HieraDet,
        {
            "embed_dim": 24,
            "stages": (1, 2, 3, 1),
            "num_heads": 1,
            "window_spec": (8, 4, 14, 7),
            "global_att_blocks": (5,),
        },
        (96, 128),
        3,
    ),
}


def build(name, **kwargs) -> nn.Module:
    """Return a model whose weights are large enough for its attention to be far from uniform."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs) if isinstance(name, str) else name(num_classes=5, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    return model


def small_swin(**kwargs) -> nn.Module:
    return build(SWIN, **SMALL_SWIN, img_size=56, **kwargs).double()


def accelerated(model: nn.Module) -> tuple[nn.Module, str]:
    """Return an accelerated copy of a model, and what the report says."""
    told = []
    model = saccade.accelerate(copy.deepcopy(model), report=told.append)
    return model, str(*told)


def swapped_count(model: nn.Module) -> int:
    return sum(type(module).__module__.startswith("saccade.") for module in model.modules())


def run(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a model's output and all its gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    images = images.clone().requires_grad_()
    out = model(images)
    out.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"output": out.detach(), "images": images.grad, **gradients}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # Gradients that are zero but for rounding, such as a bias before a norm, are compared as such.
        assert (ours[name] - expected).norm() <= 1e-10 * expected.norm() + 1e-12, name


@pytest.mark.parametrize("case", MODELS)
def test_outputs_gradients_and_state_stay(case):
    name, kwargs, size, count = MODELS[case]
    model = build(name, **kwargs).double()
    faster, said = accelerated(model)
    assert swapped_count(faster) == count, said
    assert said.count("swapped") == 1
    state = model.state_dict()
    assert list(faster.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in faster.state_dict().items())
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    for training in (False, True):
        assert_same(run(faster.train(training), images), run(model.train(training), images))


def test_weights_load_after_as_before():
    model, other = small_swin(), small_swin()
    nn.init.normal_(other.layers[0].blocks[1].attn.relative_position_bias_table)
    model.load_state_dict(saccade.accelerate(other, report=None).state_dict())
    faster, _ = accelerated(small_swin())
    faster.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64)
    torch.testing.assert_close(faster.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        (
            "swinv2_tiny_window8_256",
            {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)},
            "2 x WindowAttention: cosine",
        ),
        (
            "swinv2_cr_tiny_ns_224",
            {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)},
            "WindowMultiHeadAttention: cos",
        ),
        ("halonet26t", {}, "2 x HaloAttn: no gain measured for this model"),
        (
            "samvit_base_patch16",
            {"depth": 1, "embed_dim": 48, "num_heads": 2},
            "1 x Attention: its position bias depends",
        ),
        (
            "nest_tiny",
            {},
            "12 x Attention: its windows are",
        ),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, "4 x Conv2d: no gain measured for 7x7 kernels"),
        ("resnet10t", {}, "nothing to swap"),
    ],
)
def test_the_rest_stays_alone(name, kwargs, reason, monkeypatch):
    monkeypatch.setattr(measured, "DEPTHWISE_GAINS", {})
    faster, said = accelerated(timm.create_model(name, **kwargs))
    assert swapped_count(faster) == 0
    assert reason in said
    assert said.endswith("nothing to swap")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("gcvit", "4 x GlobalContextVitBlock: its windows share the queries of the whole image"),
        ("maxvit, even grids", "needs grids of odd extents"),
        ("maxvit, position mlp", "the position bias of its grid is no table"),
        ("hiera", "2 x MaskUnitAttention: it pools its queries"),
        ("sam2", "1 x MultiScaleBlock: it attends globally"),
    ],
)
def test_report_says_why_parts_of_a_model_stay(case, reason):
    name, kwargs, *_ = MODELS[case]
    _, said = accelerated(build(name, **kwargs))
    assert reason in said


def test_own_attention_in_a_known_block_stays():
    model = small_swin()
    model.layers[0].blocks[0].attn = nn.Identity()
    model.layers[0].blocks[1].forward = lambda x: x
    faster, said = accelerated(model)
    assert swapped_count(faster) == 2
    assert "its attention is a Identity" in said
    assert "its forward is overridden" in said


def test_report_is_printed_and_quotes_measured_gains(capsys, monkeypatch):
    assert saccade.accelerate(small_swin()).layers is not None
    said = capsys.readouterr().out
    assert said.startswith(f"saccade.accelerate: {SWIN}\n  swapped  4 x SwinTransformerBlock: window_attention\n")
    assert "not measured on this device" in said
    gain = measured.Gain(SWIN, "224 pixels", 1.5, 1.25, "some GPU", "2026-01-31")
    monkeypatch.setattr(measured, "MODEL_GAINS", [gain])
    _, said = accelerated(small_swin())
    assert "not measured on this device" in said
    assert said.endswith("1.50x inference, 1.25x training (224 pixels; some GPU, 2026-01-31)")


def test_twice_is_once_and_restore_undoes():
    model = small_swin()
    faster, said = accelerated(model)
    again, said_again = accelerated(faster)
    assert said_again == said
    assert [type(module) for module in again.modules()] == [type(module) for module in faster.modules()]
    assert saccade.restore(again) is again
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]


def test_input_size_changes_and_checkpointing_works_afterwards():
    model = small_swin()
    faster, _ = accelerated(model)
    for one in (model, faster):
        one.set_input_size((112, 112))
        one.set_grad_checkpointing()
    images = torch.randn(1, 3, 112, 112, dtype=torch.float64)
    assert_same(run(faster, images), run(model, images))


def test_batches_of_any_size_export():
    faster, _ = accelerated(small_swin().eval())
    images = torch.randn(3, 3, 56, 56, dtype=torch.float64)
    exported = torch.export.export(faster, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    torch.testing.assert_close(exported(images[:2]), faster(images[:2]))


def test_dropped_attention_weights_are_timms():
    model = small_swin(attn_drop_rate=0.3)
    images = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    faster, _ = accelerated(model)
    assert_same(run(faster.train(), images), run(model.train(), images))
    torch.testing.assert_close(faster.eval()(images), model.eval()(images))


@pytest.mark.parametrize("part", ["attn", "attn.attn_drop", "attn.softmax"])
def test_hooks_on_parts_see_what_they_saw(part):
    model = small_swin().eval()
    model.layers[0].blocks[0].attn.fused_attn = False
    faster, _ = accelerated(model)
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64)
    seen = []
    for one in (model, faster):
        module = one.layers[0].blocks[0].get_submodule(part)
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        one(images)
    assert torch.equal(*seen)


def test_an_adapter_in_place_of_a_convolution_is_called():
    model = FocalNet(num_classes=5, embed_dim=16, depths=(1, 1)).double().eval()
    faster, _ = accelerated(model)
    for one in (model, faster):
        modulation = one.layers[0].blocks[0].modulation
        torch.manual_seed(2)
        modulation.h = nn.Sequential(modulation.h, nn.Conv2d(16, 16, 1, dtype=torch.float64))
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(faster(images), model(images))


def test_maxvit_with_split_heads_and_without_bias():
    # The heads of a projection lie in another order, and the grid may be even without a bias.
    cfg = MaxxVitTransformerCfg(head_first=False, rel_pos_type="none", window_size=(4, 2), grid_size=(4, 2))
    for kind in ("block", "grid"):
        block = maxxvit.PartitionAttentionCl(64, kind, cfg).double().eval()
        faster, said = accelerated(block)
        assert "swapped  1" in said
        x = torch.randn(2, 8, 12, 64, dtype=torch.float64)
        torch.testing.assert_close(faster(x), block(x))
        with pytest.raises(AssertionError, match="divisible"):
            faster(x[:, :7])


@pytest.mark.parametrize("case", ["focalnet", "swin", "davit", "twins", "tiny_vit", "maxvit", "hiera"])
def test_compiled_exported_autocast_channels_last_and_pickled(case):
    name, kwargs, size, _ = MODELS[case]
    model = build(name, **kwargs).eval()
    faster, _ = accelerated(model)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model(images)
        close = {"rtol": 1e-4, "atol": 1e-4 * expected.abs().max().item()}
        torch.testing.assert_close(faster(images), expected, **close)
        torch.testing.assert_close(pickle.loads(pickle.dumps(faster))(images), expected, **close)
        torch.testing.assert_close(
            torch.compile(faster, fullgraph=True, backend="aot_eager")(images), expected, **close
        )
        torch.testing.assert_close(torch.export.export(faster, (images,)).module()(images), expected, **close)
        with torch.autocast("cpu", torch.bfloat16):
            assert (faster(images) - expected).norm() < 0.05 * expected.norm()
        by_channel = copy.deepcopy(faster).to(memory_format=torch.channels_last)
        torch.testing.assert_close(by_channel(images.to(memory_format=torch.channels_last)), expected, **close)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((16, 24), {"block_size": 8, "halo_size": 2}),
        ((16, 8), {"block_size": 8, "halo_size": 3, "dim_head": 24, "qkv_bias": True}),
        ((14, 7), {"block_size": 7, "halo_size": 2, "stride": 2, "dim_head": 8}),
        ((8, 8), {"block_size": 4, "halo_size": 3, "scale_pos_embed": True}),
    ],
    ids=str,
)
def test_halo_attention(size, options):
    attention = HaloAttn(32, num_heads=2, **options).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    faster = saccade.accelerate(copy.deepcopy(attention), report=None, unmeasured=True)
    assert swapped_count(faster) == 1
    images = torch.randn(2, 32, *size, dtype=torch.float64)
    assert_same(run(faster, images), run(attention, images))
    with pytest.raises(AssertionError):
        faster(images[..., :-1])


def test_halo_attention_is_swapped_where_that_was_measured_to_gain(monkeypatch):
    for train, count in ((1.1, 2), (0.9, 0)):
        gain = measured.Gain("halonet26t", "224 pixels", 1.5, train, "some GPU", "2026-01-31")
        monkeypatch.setattr(measured, "MODEL_GAINS", [gain])
        faster, said = accelerated(timm.create_model("halonet26t"))
        assert swapped_count(faster) == count
        assert "1 x HaloAttn: it strides its queries" in said


def test_feature_maps_stay():
    model = timm.create_model(SWIN, features_only=True, embed_dim=24, num_heads=(1, 2, 4, 8), img_size=56).eval()
    model.double()
    faster, said = accelerated(model)
    assert "swapped  12" in said
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64)
    for ours, theirs in zip(faster(images), model(images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_modules_are_taken():
    for function in (saccade.accelerate, saccade.restore):
        with pytest.raises(TypeError, match=r"valid: a torch\.nn\.Module"):
            function("swin_tiny")
