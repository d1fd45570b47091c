"""What timm asks of a backbone, asked of every model saccade registers; later families are covered as they come."""

import copy
import math
import pickle
from functools import cache

import pytest
import timm
import torch
from timm.models import FeatureInfo
from timm.optim import param_groups_layer_decay

import saccade

NAMES = saccade.list_models()
SIZE = 32


def build(name, **kwargs):
    """Build without stochastic depth, so that two runs agree."""
    torch.manual_seed(0)
    return timm.create_model(name, drop_path_rate=0.0, **kwargs)


@cache
def build_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def size(name):
    return sum(p.numel() for p in build_meta(name).parameters())


def kind(name):
    """Return which of saccade's kinds of module a model is made of."""
    types = {type(module) for module in build_meta(name).modules()}
    return frozenset(cls for cls in types if cls.__module__.startswith("saccade."))


def smallest_of_each_kind():
    """Return the smallest models that have every kind of module between them."""
    chosen, seen = [], set()
    for name in sorted(NAMES, key=size):
        if not kind(name) <= seen:
            chosen.append(name)
            seen |= kind(name)
    return sorted(chosen)


# What shapes decide is asked of every model, on the meta device; numbers, of all but the large ones; what takes long,
# such as compiling, of the smallest models that have all parts between them.
every = pytest.mark.parametrize("name", NAMES)
all_but_large = pytest.mark.parametrize("name", [name for name in NAMES if size(name) < 35e6])
each_kind = pytest.mark.parametrize("name", smallest_of_each_kind())


def image(size=SIZE, batch=1, device=None):
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator).to(device or "cpu")


def has_class_token(name):
    """Return whether a model's features are tokens [B, 1 + N, C] instead of maps."""
    return getattr(build_meta(name), "output_fmt", None) == "NLC"


def several(x):
    """Return a tuple as it is and anything else as one: distilled models have two classifiers."""
    return x if isinstance(x, tuple) else (x,)


def as_map(features, size):
    """Return features as an NHWC map of that size, without the class token where there is one."""
    return features if features.dim() == 4 else features[:, 1:].unflatten(1, size)


def assert_map_size(value, size, reduction):
    """Check the size of an NHWC map: each downsampler may round up or down, as its family's official code does."""
    if value.dim() == 3:
        assert value.shape[1] == 1 + math.prod(math.ceil(extent / reduction) for extent in size)
        return
    for found, extent in zip(value.shape[1:3], size, strict=True):
        assert max(extent // reduction, 1) <= found <= math.ceil(extent / reduction)


def run_backward(model):
    """Return the output, and the gradients by name, of one step."""
    model.zero_grad(set_to_none=True)
    out = model(image(batch=2, device=next(model.parameters()).device))
    out.square().mean().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


@every
def test_every_parameter_is_trained(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=42)
    out, gradients = run_backward(model)
    assert out.shape == (2, 42)
    assert [key for key, gradient in gradients.items() if gradient is None] == []


@all_but_large
def test_trains(name):
    """Outputs and gradients are finite, and checkpointing changes neither."""
    model = build(name).train()
    out, gradients = run_backward(model)
    assert out.isfinite().all()
    assert [key for key, gradient in gradients.items() if not gradient.isfinite().all()] == []
    model.set_grad_checkpointing(True)
    calls = []
    block = next(module for module in model.modules() if type(module).__name__ == "MixerBlock")
    block.before.register_forward_pre_hook(lambda *_: calls.append(1))
    again, recomputed = run_backward(model)
    assert len(calls) == 2
    torch.testing.assert_close(again, out)
    for key, gradient in gradients.items():
        assert (recomputed[key] - gradient).norm() <= 1e-4 * gradient.norm(), key
    model.set_grad_checkpointing(False)
    calls.clear()
    model(image(batch=2))
    assert len(calls) == 1


@every
def test_pretrained_cfgs(name):
    model = build_meta(name)
    parameters = model.state_dict()
    assert timm.models.get_arch_pretrained_cfgs(name)
    for tag, cfg in timm.models.get_arch_pretrained_cfgs(name).items():
        assert all(f"{classifier}.weight" in parameters for classifier in several(cfg.classifier))
        assert f"{cfg.first_conv}.weight" in parameters
        assert cfg.num_classes >= 0  # 0 where the released file has no classifier
        assert len(cfg.input_size) == 3
        assert cfg.mean and cfg.std and cfg.interpolation and cfg.license and cfg.paper_ids, tag
        assert cfg.url or cfg.hf_hub_id or cfg.notes or tag.endswith(".untrained")
        features = model.forward_features(image(cfg.input_size[1:], batch=2, device="meta"))
        assert tuple(as_map(features, cfg.pool_size).shape[1:3]) == cfg.pool_size
    cfg = model.pretrained_cfg
    assert cfg["num_classes"] > 0, "the default tag has a classifier"
    classifiers, paths = several(model.get_classifier()), several(cfg["classifier"])
    assert all(found is model.get_submodule(path) for found, path in zip(classifiers, paths, strict=True))
    assert model.num_classes == cfg["num_classes"]
    assert model(image(cfg["input_size"][1:], batch=2, device="meta")).shape == (2, cfg["num_classes"])


@every
@pytest.mark.parametrize("size", [(1, 1), (97, 130)])
def test_input_sizes(name, size):
    model = build_meta(name)
    features = model.forward_features(image(size, batch=2, device="meta"))
    reduction = model.feature_info[-1]["reduction"]
    assert_map_size(features, size, reduction)
    assert (len(features), features.shape[-1]) == (2, model.num_features)
    assert model.forward_head(features).shape == (2, model.num_classes)


@each_kind
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (97, 33)])
def test_odd_sizes_compute(name, size):
    with torch.no_grad():
        assert build(name).eval()(image(size)).isfinite().all()


@every
def test_head(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=5)
    features = model.forward_features(torch.empty(2, 5, 64, 96, device="meta"))
    assert model.forward_head(features).shape == (2, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(11)
    assert model.num_classes == 11
    assert model.forward_head(features).shape == (2, 11)
    model.reset_classifier(3, "catavgmax")
    assert model.forward_head(features).shape == (2, 3)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "max")
    assert all(isinstance(classifier, torch.nn.Identity) for classifier in several(model.get_classifier()))
    assert model.forward_head(features).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == features.shape
    bare = build_meta(name, num_classes=0, global_pool="")
    assert bare(image((64, 96), batch=2, device="meta")).shape == features.shape


def check_features(model, count):
    maps = model(image((97, 130), batch=2, device="meta"))
    info = model.feature_info
    assert len(maps) == len(info.channels()) == count
    for value, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert value.shape[:2] == (2, channels)
        assert_map_size(value.permute(0, 2, 3, 1), (97, 130), reduction)


@every
def test_features_only(name):
    model = build_meta(name, features_only=True)
    check_features(model, 4)
    reductions = model.feature_info.reduction()
    assert len(set(reductions)) == 1 or reductions == [4, 8, 16, 32]


@each_kind
@pytest.mark.parametrize(("choice", "count"), [((1, 3), 2), ((-1,), 1), (2, 2)])
def test_features_only_chosen(name, choice, count):
    check_features(build_meta(name, features_only=True, out_indices=choice), count)


@every
def test_forward_intermediates(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert len(info.channels()) >= 3
    x = image((40, 66), device="meta")
    final, maps = model.forward_intermediates(x)
    assert final.shape == model.forward_features(x).shape
    for value, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert value.shape[:2] == (1, channels)
        assert_map_size(value.permute(0, 2, 3, 1), (40, 66), reduction)
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    assert len(model.steps) == 3
    assert model.num_classes == 0
    pruned = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    assert [value.shape for value in pruned] == [maps[0].shape, maps[2].shape]


@each_kind
def test_intermediates_agree(name):
    model = build(name).eval()
    x = image((64, 96))
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        _, normed = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NHWC")
        torch.testing.assert_close(normed[0], as_map(final, normed[0].shape[1:3]))
        early, few = model.forward_intermediates(x, indices=[0, 2], stop_early=True)
        torch.testing.assert_close(few, [maps[0], maps[2]])
        torch.testing.assert_close(as_map(early, maps[2].shape[2:]).permute(0, 3, 1, 2), maps[2])
        dense = timm.create_model(name, features_only=True, out_indices=(0, 2)).eval()
        dense.model.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(dense(x), few)


@each_kind
@pytest.mark.parametrize("feature_cls", ["list", "hook", "fx"])
def test_other_feature_extractors(name, feature_cls):
    """The extractors of timm that take modules' outputs as they are give the same maps, channels last."""
    if has_class_token(name) and feature_cls != "fx":
        with pytest.raises(ValueError, match=f"feature_cls={feature_cls!r} .* 'getter' or 'fx'"):
            build(name, features_only=True, feature_cls=feature_cls)
        return
    with torch.no_grad():
        expected = build(name, features_only=True, out_indices=(1, 2)).eval()(image(64))
        maps = build(name, features_only=True, out_indices=(1, 2), feature_cls=feature_cls).eval()(image(64))
    maps = [as_map(value, reference.shape[2:]) for value, reference in zip(maps, expected, strict=True)]
    torch.testing.assert_close([value.permute(0, 3, 1, 2) for value in maps], expected)


def test_unknown_output_format():
    with pytest.raises(ValueError, match="output_fmt='NLC' must be 'NCHW' or 'NHWC'"):
        build("nat_nano").forward_intermediates(image(), output_fmt="NLC")


@every
def test_layer_decay(name):
    """Learning rates grow from stem to head, and no parameter is left out."""
    model = build_meta(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(p): key for key, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales.keys() == set(names.values())
    assert {scales[f"{name}.weight"] for name in several(model.pretrained_cfg["classifier"])} == {1.0}
    stem = {scale for key, scale in scales.items() if key.startswith("stem.")}
    assert stem == {min(scales.values())}
    depth = sum(type(module).__name__ == "MixerBlock" for module in model.modules())
    assert len(set(scales.values())) >= depth + 2
    coarse = model.group_matcher(coarse=True)
    assert len(coarse) == 2


@every
def test_decay_exemptions_exist(name):
    model = build_meta(name)
    assert model.no_weight_decay() <= {key for key, _ in model.named_parameters()}


@each_kind
def test_compile(name):
    model = build(name).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(image()), model(image()))


@each_kind
def test_export(name):
    model = build(name).eval()
    exported = torch.export.export(model, (image(),)).module()
    torch.testing.assert_close(exported(image()), model(image()))


@each_kind
def test_export_for_any_batch(name):
    model = build(name).eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (image(batch=2),), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(image(batch=3)), model(image(batch=3)))


@each_kind
def test_state_dict_round_trip(name):
    source, target = build(name).eval(), timm.create_model(name).eval()
    keys = list(source.state_dict())
    target.load_state_dict(source.state_dict())
    with torch.no_grad():
        expected = source(image())
        assert not torch.equal(timm.create_model(name).eval()(image()), expected)
        for model in (target, copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
            assert list(model.state_dict()) == keys
            assert torch.equal(model(image()), expected)


@each_kind
def test_bfloat16(name):
    model = build(name).eval()
    with torch.no_grad():
        expected = model(image())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(image())
        half = model.to(torch.bfloat16)(image().to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    for out in (autocast, half):
        assert (out.float() - expected).norm() < 0.05 * expected.norm()


@each_kind
def test_stochastic_depth_and_dropout(name):
    model = timm.create_model(name, drop_path_rate=0.5, drop_rate=0.5)
    model.train()
    assert not torch.equal(model(image(batch=4)), model(image(batch=4)))
    model.eval()
    assert torch.equal(model(image()), model(image()))
