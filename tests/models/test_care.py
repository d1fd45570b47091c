"""Every golden of CARE, reached the way a user reaches official weights: a file given to timm.create_model."""

import pytest
import timm
import torch

from saccade.models.care_checkpoint import OFFICIAL_NAMES
from saccade.models.checkpoint import rename

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_close, assert_logits, assert_map, load_file

NAMES = sorted(path.stem for path in (GOLDENS / "care").glob("*.json"))
PARAMETERS = {"care_s0": 7_340_000, "care_s1": 9_602_424, "care_s2": 19_481_288}


@pytest.mark.parametrize("name", NAMES)
def test_classifier(name, tmp_path):
    golden = load_golden("care", name)
    model = load_file(golden["model"], tmp_path / "official.pth.tar", {"state_dict": official_state(golden)})
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.no_grad():
        final, maps = model.forward_intermediates(golden_image(*golden["input"]))
        assert_logits(model.forward_head(final)[0], golden)
        for head, key in ((model.head, "head_logits"), (model.head_dist, "dist_head_logits")):
            assert_close(head(final)[0, :16], golden[key], key)
        for index, (value, reference) in enumerate(zip(maps, golden["stages"], strict=True)):
            assert_map(value, reference, f"stage {index}")
        for extra in golden["extra"]:
            logits = model(golden_image(*extra["input"]))
            assert_close(logits[-1, :16], extra["logits_last_image"], f"logits at {extra['input']}")
            assert_close(logits.norm(), extra["logits_norm"], f"norm of logits at {extra['input']}")


def test_gradient(tmp_path):
    """In float64: float32 gradients of what attention divides by differ by 1.3e-5 with the number of threads."""
    golden = load_golden("care", "care_s0")
    model = load_file("care_s0", tmp_path / "official.pth.tar", {"state_dict": official_state(golden)}).double()
    image = golden_image(*golden["input"]).double().requires_grad_()
    logits = model(image)
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)).double())
    assert_close(image.grad.flatten()[:32], golden["grad"]["input_first32"], "gradient of the image")
    assert_close(image.grad.norm(), golden["grad"]["input_norm"], "norm of the gradient of the image")
    norms = rename(golden["grad"]["param_norms"], OFFICIAL_NAMES)
    parameters = dict(model.named_parameters())
    assert norms.keys() == parameters.keys()
    for key, norm in norms.items():
        assert_close(parameters[key].grad.double().norm(), norm, f"norm of the gradient of {key}")


@pytest.mark.parametrize("name", PARAMETERS)
def test_variants(name):
    with torch.device("meta"):
        model = timm.create_model(name, drop_path_rate=0.3)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    blocks = [block for stage in model.stages for block in stage.blocks]
    for block, rate in zip(blocks, torch.linspace(0, 0.3, len(blocks)).tolist(), strict=True):
        assert getattr(block.drop_path1, "drop_prob", 0.0) == pytest.approx(rate)
    # Heads of 16 channels in the third stage, of 32 in the fourth, none before.
    mixers = [stage.blocks[0].mixer for stage in model.stages]
    widths = [mixer.qk.in_features // mixer.num_heads if mixer.num_heads else None for mixer in mixers]
    assert widths == [None, None, 16, 32]


def test_nano_is_small():
    assert sum(p.numel() for p in timm.create_model("care_nano").parameters()) < 1e6


def test_heads():
    """Both heads' logits in distillation, and their mean else."""
    model = timm.create_model("care_nano", num_classes=5).train()
    images = golden_image(32, 2)
    assert model(images).shape == (2, 5)
    model.set_distilled_training(True)
    logits, distilled = model(images)
    assert not torch.equal(logits, distilled)
    mean = model.eval()(images)
    features = model.forward_features(images)
    torch.testing.assert_close(mean, (model.head(features) + model.head_dist(features)) / 2)
    model.train().set_distilled_training(False)
    assert model(images).shape == (2, 5)


def test_distills_with_timm():
    """timm's task takes both heads' logits, and steps the model towards the labels of a teacher."""
    from timm.task import TokenDistillationTask

    torch.manual_seed(0)
    model = timm.create_model("care_nano", num_classes=4)
    teacher = timm.create_model("nat_nano", num_classes=4)
    task = TokenDistillationTask(student_model=model, teacher_model=teacher, distill_type="hard", verbose=False)
    task(golden_image(32, 4), torch.arange(4))["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_fine_tuning_starts_with_fresh_classifiers(tmp_path):
    model = timm.create_model("care_nano").eval()
    tuned = load_file("care_nano", tmp_path / "own.pth", {"state_dict": model.state_dict()}, num_classes=7)
    assert [classifier.out_features for classifier in tuned.get_classifier()] == [7, 7]
    torch.testing.assert_close(tuned.head_dist.norm.weight, model.head_dist.norm.weight)
    x = golden_image(70, 1)
    with torch.no_grad():
        assert torch.equal(tuned.forward_features(x), model.forward_features(x))


def test_features_have_no_parameter_to_spare():
    """Of the heads nothing is left, so that distributed training finds a gradient for all there is."""
    model = timm.create_model("care_nano", features_only=True, out_norms=True)
    sum(x.square().mean() for x in model(golden_image([64, 96], 2))).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.feature_info.channels() == [16, 32, 64, 192]


def test_our_own_checkpoint(tmp_path):
    model = timm.create_model("care_nano").eval()
    again = load_file("care_nano", tmp_path / "own.pth", {"state_dict": model.state_dict()})
    with torch.no_grad():
        assert torch.equal(again(golden_image(70, 1)), model(golden_image(70, 1)))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"ratios=\(\(2, 2\),\) must be one for each stage of depths=\(1, 2, 2, 2\)"):
        timm.create_model("care_nano", ratios=((2, 2),))


def test_weights_without_a_link_say_where_they_are():
    with pytest.raises(
        RuntimeError,
        match=r"https://drive.google.com/drive/folders/1UGRH.*evaluate classification/care_s1_in1k model.weights=FILE",
    ):
        timm.create_model("care_s1", pretrained=True)
