"""Every recipe composes, fits the types, names a model there is, and says what was published."""

import re

import pytest
import timm
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from timm.models import get_pretrained_cfg

from saccade.tools.engine.settings import Settings, read_settings
from saccade.tools.recipe import HOME, TASKS, header, recipe_names


def settings_of(name: str, *overrides: str) -> Settings:
    GlobalHydra.instance().clear()
    with initialize_config_module("saccade.recipes", version_base="1.3"):
        return read_settings(compose(name, overrides=list(overrides)))


@pytest.mark.parametrize("name", recipe_names(["classification"]))
def test_recipe_is_complete(name):
    settings = settings_of(name, *([] if name.endswith("quickstart") else ["data.root=/data"]))
    assert timm.is_model(settings.model.name)
    if settings.model.weights:
        weights = get_pretrained_cfg(settings.model.weights)
        assert weights.url or weights.notes
    text = "\n".join(header(name))
    assert "saccade" in text and "Expected: " in text and "Source: " in text
    assert name.endswith("quickstart") or f"train {name} " in text


# Those that no source of ours has; RAVLT's and MAViT's stand in the papers' tables only.
WITHOUT_FIGURE = {"flatten_pvt_large", "inline_swin_base_384", "ravlt_tiny", "ravlt_base", "ravlt_large"} | {
    f"mavit_{size}" for size in ("tiny", "small", "base", "large")
}


@pytest.mark.parametrize("name", [name for name in recipe_names(["classification"]) if "in1k" in name])
def test_expected_accuracy_is_the_published_one(name):
    settings = settings_of(name, "data.root=/data")
    family = __import__("sys").modules[timm.model_entrypoint(settings.model.name).__module__]
    trained_on = name.removeprefix(f"classification/{settings.model.name}_")
    tag = re.compile(rf"{settings.model.name}\.[a-z]+_{trained_on}")
    published = [top1 for variant, top1 in family.published_top1.items() if tag.fullmatch(variant)]
    expected = f"{published[0]} % top-1" if published else "no figure was published"
    assert f"Expected: {expected}" in "\n".join(header(name))
    assert len(published) == 1 or settings.model.name in WITHOUT_FIGURE


def test_published_hyperparameters():
    """SHI-Labs' classification recipe: train.py and the configs of each variant."""
    tiny = settings_of("classification/nat_tiny_in1k", "data.root=/data")
    assert (tiny.batch_size, tiny.seed) == (8 * 128, 42)
    optimizer, schedule, augment = tiny.optimizer, tiny.schedule, tiny.augment
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.clip) == ("adamw", 1e-3, 0.05, 5.0)
    assert (optimizer.betas, optimizer.eps, optimizer.ema_decay) == ([0.9, 0.999], 1e-8, None)
    assert (schedule.name, schedule.epochs, schedule.cooldown_epochs) == ("cosine", 300, 10)
    assert (schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == (20, 1e-6, 5e-6)
    assert (augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (augment.auto_augment, augment.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.1)
    assert (augment.erase_prob, augment.erase_mode, augment.erase_count) == (0.25, "pixel", 1)
    assert (augment.scale, augment.interpolation, tiny.runtime.precision) == ([0.08, 1.0], "random", "float16")


@pytest.mark.parametrize(("recipe", "drop_path"), [("van_b0", 0.1), ("van_b2", 0.1), ("van_b3", 0.2)])
def test_published_hyperparameters_of_van(recipe, drop_path):
    """The official train.sh and train.py."""
    settings = settings_of(f"classification/{recipe}_in1k", "data.root=/data")
    assert (settings.model.name, settings.model.drop_path_rate, settings.batch_size) == (recipe, drop_path, 8 * 128)
    optimizer, schedule = settings.optimizer, settings.schedule
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.clip) == ("adamw", 1e-3, 0.05, None)
    assert (schedule.name, schedule.epochs, schedule.cooldown_epochs) == ("cosine", 300, 10)
    assert (schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == (5, 1e-6, 1e-6)
    assert settings.runtime.precision == "float32"


@pytest.mark.parametrize(
    ("recipe", "drop_path"),
    [
        ("focalnet_tiny_srf_fused", 0.2),
        ("focalnet_tiny_lrf_fused", 0.2),
        ("focalnet_small_srf_fused", 0.3),
        ("focalnet_small_lrf_fused", 0.3),
        ("focalnet_base_srf_fused", 0.5),
        ("focalnet_base_lrf_fused", 0.5),
        ("focalnet_tiny_iso", 0.2),
        ("focalnet_small_iso", 0.2),
        ("focalnet_base_iso", 0.2),
    ],
)
def test_published_hyperparameters_of_focalnet(recipe, drop_path):
    """The official config.py as it was at the release; it states rates for 512 images."""
    settings = settings_of(f"classification/{recipe}_in1k", "data.root=/data")
    assert (settings.model.name, settings.model.drop_path_rate, settings.batch_size) == (recipe, drop_path, 8 * 128)
    optimizer, schedule, augment = settings.optimizer, settings.schedule, settings.augment
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.clip) == ("adamw", 2 * 5e-4, 0.05, 5.0)
    assert (schedule.name, schedule.epochs, schedule.cooldown_epochs) == ("cosine", 300, 0)
    assert (schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == (20, 2 * 5e-7, 2 * 5e-6)
    assert (augment.mixup, augment.cutmix, augment.interpolation) == (0.8, 1.0, "bicubic")
    assert settings.runtime.precision == "float16"


LEAPLAB = {
    "agent_deit_tiny": (4096, 4e-3, 4e-6, 4e-5, 20, 0, 5.0, 0.0),
    "agent_deit_small": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.1),
    "agent_deit_small_448": (512, 5e-4, 5e-7, 5e-6, 20, 0, 5.0, 0.1),
    "agent_deit_base": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.3),
    "agent_pvt_tiny": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "agent_pvt_small": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "agent_pvt_medium": (1024, 1e-3, 2e-6, 2e-5, 5, 10, 1.0, 0.3),
    "agent_pvt_medium_256": (512, 5e-4, 1e-6, 1e-5, 5, 10, 1.0, 0.3),
    "agent_pvt_large": (512, 5e-4, 1e-6, 1e-5, 5, 10, 1.0, 0.3),
    "flatten_pvt_tiny": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "flatten_pvt_small": (512, 5e-4, 1e-6, 1e-5, 5, 10, None, 0.1),
    "flatten_pvt_medium": (512, 5e-4, 1e-6, 1e-5, 5, 10, 1.0, 0.3),
    "flatten_pvt_large": (256, 2.5e-4, 5e-7, 5e-6, 5, 10, 1.0, 0.3),
    "flatten_pvt_v2_b0": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "flatten_pvt_v2_b1": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "flatten_pvt_v2_b2": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "flatten_pvt_v2_b3": (1024, 1e-3, 2e-6, 2e-5, 5, 10, 1.0, 0.3),
    "flatten_pvt_v2_b4": (512, 5e-4, 1e-6, 1e-5, 5, 10, 1.0, 0.3),
    "inline_deit_tiny": (4096, 4e-3, 4e-6, 4e-5, 20, 0, 5.0, 0.1),
    "inline_deit_small": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.1),
    "inline_deit_base": (512, 5e-4, 5e-7, 5e-6, 20, 0, 5.0, 0.1),
    "inline_pvt_tiny": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "inline_pvt_small": (1024, 1e-3, 2e-6, 2e-5, 5, 10, None, 0.1),
    "inline_pvt_medium": (1024, 1e-3, 2e-6, 2e-5, 5, 10, 1.0, 0.3),
    "inline_pvt_large": (512, 5e-4, 1e-6, 1e-5, 5, 10, 1.0, 0.3),
    "flatten_swin_tiny": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.2),
    "flatten_swin_small": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.3),
    "flatten_swin_base": (512, 5e-4, 5e-7, 5e-6, 20, 0, 5.0, 0.5),
    "flatten_swin_base_384": (256, 1e-5, 1e-8, 1e-7, 5, 0, 5.0, 0.5),
    "flatten_cswin_tiny": (2048, 2e-3, 4e-6, 4e-5, 20, 10, None, 0.2),
    "flatten_cswin_small": (1024, 1e-3, 2e-6, 2e-5, 20, 10, None, 0.4),
    "flatten_cswin_base": (512, 5e-4, 1e-6, 1e-5, 20, 10, None, 0.5),
    "flatten_cswin_base_384": (256, 2.5e-6, 2.5e-6, 2.5e-7, 0, 10, None, 0.7),
    "agent_swin_tiny": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.2),
    "agent_swin_small": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.3),
    "agent_swin_small_288": (512, 5e-4, 5e-7, 5e-6, 20, 0, 5.0, 0.3),
    "agent_swin_base": (512, 5e-4, 5e-7, 5e-6, 20, 0, 5.0, 0.5),
    "agent_swin_base_384": (256, 1e-5, 1e-8, 1e-7, 5, 0, 5.0, 0.5),
    "agent_cswin_tiny": (1024, 1e-3, 2e-6, 2e-5, 20, 10, None, 0.2),
    "agent_cswin_small": (1024, 1e-3, 2e-6, 2e-5, 20, 10, None, 0.4),
    "agent_cswin_base": (512, 5e-4, 1e-6, 1e-5, 20, 10, None, 0.5),
    "agent_cswin_base_384": (256, 2.5e-6, 2.5e-6, 2.5e-7, 0, 10, None, 0.7),
    "inline_swin_tiny": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.2),
    "inline_swin_small": (1024, 1e-3, 1e-6, 1e-5, 20, 0, 5.0, 0.3),
    "inline_swin_base": (512, 5e-4, 5e-7, 5e-6, 20, 0, 5.0, 0.5),
    "inline_swin_base_384": (256, 1e-5, 1e-8, 1e-7, 5, 0, 5.0, 0.5),
    "inline_cswin_tiny": (1024, 1e-3, 2e-6, 2e-5, 20, 10, None, 0.2),
    "inline_cswin_small": (1024, 1e-3, 2e-6, 2e-5, 20, 10, None, 0.4),
    "inline_cswin_base": (512, 5e-4, 1e-6, 1e-5, 20, 10, None, 0.5),
    "inline_cswin_base_384": (256, 2.5e-6, 2.5e-6, 2.5e-7, 0, 10, None, 0.7),
}
# Weight decay, decay of the averaged weights, and epochs, where they are not 0.05, none and 300.
LEAPLAB_REST = {
    "flatten_swin_base_384": (1e-8, None, 30),
    "flatten_cswin_tiny": (0.05, 0.99984, 300),
    "flatten_cswin_small": (0.05, 0.99984, 300),
    "flatten_cswin_base": (0.1, 0.99982, 300),
    "flatten_cswin_base_384": (1e-8, 0.99982, 20),
    "agent_swin_base_384": (1e-8, None, 30),
    "agent_cswin_tiny": (0.05, 0.99984, 300),
    "agent_cswin_small": (0.05, 0.99984, 300),
    "agent_cswin_base": (0.1, 0.99992, 300),
    "agent_cswin_base_384": (1e-8, 0.9998, 20),
    "inline_swin_base_384": (1e-8, None, 30),
    "inline_cswin_tiny": (0.05, 0.9999, 300),
    "inline_cswin_small": (0.05, 0.9999, 300),
    "inline_cswin_base": (0.1, 0.99995, 300),
    "inline_cswin_base_384": (1e-8, 0.999975, 20),
}


@pytest.mark.parametrize("recipe", LEAPLAB)
def test_published_hyperparameters_of_agent_flatten_and_inline(recipe):
    """The configurations of the three repositories at the batch of their 8 GPUs, for which rates are scaled."""
    settings = settings_of(f"classification/{recipe}_in1k", "data.root=/data")
    optimizer, schedule, augment = settings.optimizer, settings.schedule, settings.augment
    rates = (settings.batch_size, optimizer.lr, schedule.warmup_lr, schedule.min_lr)
    lengths = (schedule.warmup_epochs, schedule.cooldown_epochs)
    assert (*rates, *lengths, optimizer.clip, settings.model.drop_path_rate) == LEAPLAB[recipe]
    rest = (optimizer.weight_decay, optimizer.ema_decay, schedule.epochs)
    assert rest == LEAPLAB_REST.get(recipe, (0.05, None, 300))
    assert (optimizer.name, schedule.name, settings.model.name) == ("adamw", "cosine", recipe)
    assert (augment.mixup, augment.cutmix, augment.interpolation) == (0.8, 1.0, "bicubic")
    start = f"{recipe.removesuffix('_384')}.leaplab_in1k" if recipe.endswith("base_384") else None
    assert settings.model.weights == start
    assert settings.runtime.max_batch_per_process * 8 == settings.batch_size
    assert settings.runtime.precision == ("float16" if recipe.startswith("inline") else "float32")


@pytest.mark.parametrize(("recipe", "drop_path"), [("van_b4", 0.2), ("van_b5", 0.2), ("van_b6", 0.3)])
@pytest.mark.parametrize("size", [224, 384])
def test_published_hyperparameters_of_fine_tuned_van(recipe, drop_path, size):
    """The trainer of the fork for ImageNet-22k."""
    name = f"classification/{recipe}_in22k_ft_in1k" + ("_384" if size == 384 else "")
    settings = settings_of(name, "data.root=/data")
    assert (settings.model.name, settings.model.drop_path_rate, settings.batch_size) == (recipe, drop_path, 512)
    assert settings.model.weights == f"{recipe}.van_in22k"
    optimizer, schedule, augment, data = settings.optimizer, settings.schedule, settings.augment, settings.data
    assert (optimizer.lr, optimizer.weight_decay, schedule.epochs, schedule.warmup_epochs) == (5e-5, 1e-8, 30, 0)
    assert (augment.mixup, augment.cutmix, augment.label_smoothing, augment.interpolation) == (0, 0, 0.1, "bicubic")
    assert (data.mean, data.crop_pct) == ([0.485, 0.456, 0.406], 1.0 if size == 384 else 0.875)
    assert data.crop_mode == ("squash" if size == 384 else None)


@pytest.mark.parametrize(
    ("recipe", "drop_path"),
    [
        ("nat_mini", 0.2),
        ("nat_small", 0.3),
        ("nat_base", 0.5),
        ("dinat_mini", 0.2),
        ("dinat_tiny", 0.2),
        ("dinat_small", 0.3),
        ("dinat_base", 0.5),
        ("dinat_s_tiny", 0.2),
        ("dinat_s_small", 0.3),
        ("dinat_s_base", 0.5),
        ("nat_isotropic_small", 0.1),
        ("nat_isotropic_base", 0.4),
        ("dinat_isotropic_base", 0.4),
        ("vit_rpb_base", 0.4),
    ],
)
def test_variants(recipe, drop_path):
    settings = settings_of(f"classification/{recipe}_in1k", "data.root=/data")
    assert (settings.model.name, settings.model.drop_path_rate) == (recipe, drop_path)
    long = recipe.startswith(("nat_iso", "dinat_iso", "vit")) and recipe.endswith("base")
    assert settings.schedule.warmup_epochs == (50 if long else 20)
    assert settings.optimizer.ema_decay == (0.9998 if long else None)


@pytest.mark.parametrize(
    ("recipe", "weight_decay"),
    [
        ("dinat_large", 1e-4),
        ("dinat_large_384", 1e-10),
        ("dinat_s_large", 1e-4),
        ("dinat_s_large_384", 1e-5),
    ],
)
def test_fine_tuning(recipe, weight_decay):
    settings = settings_of(f"classification/{recipe}_in22k_ft_in1k", "data.root=/data")
    assert (settings.model.name, settings.optimizer.weight_decay) == (recipe, weight_decay)
    assert (settings.optimizer.lr, settings.schedule.name, settings.schedule.epochs) == (5e-5, "constant", 30)
    assert (settings.augment.mixup, settings.augment.cutmix, settings.batch_size) == (0, 0, 8 * 64)
    assert (settings.runtime.precision, settings.model.weights.split(".")[1]) == ("float32", "shi_in22k")


@pytest.mark.parametrize(
    ("recipe", "drop_path"),
    [("litv2_small", 0.2), ("litv2_small_alpha05", 0.2), ("litv2_medium", 0.3), ("litv2_base", 0.5)],
)
def test_litv2(recipe, drop_path):
    """ziplab/LITv2, classification: config.py and the configs of each variant; rates are for 1024 images."""
    settings = settings_of(f"classification/{recipe}_in1k", "data.root=/data")
    optimizer, schedule, augment = settings.optimizer, settings.schedule, settings.augment
    assert (settings.model.name, settings.model.drop_path_rate, settings.batch_size) == (recipe, drop_path, 8 * 128)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.clip) == ("adamw", 1e-3, 0.05, 5.0)
    assert (schedule.epochs, schedule.cooldown_epochs, schedule.warmup_epochs) == (300, 0, 20)
    assert (schedule.name, schedule.warmup_lr, schedule.min_lr) == ("cosine", 1e-6, 1e-5)
    assert (augment.mixup, augment.cutmix, augment.interpolation, augment.erase_prob) == (0.8, 1.0, "bicubic", 0.25)


def test_litv2_fine_tuning():
    settings = settings_of("classification/litv2_base_384_in1k", "data.root=/data")
    optimizer, schedule = settings.optimizer, settings.schedule
    assert (settings.model.name, settings.model.weights) == ("litv2_base_384", "litv2_base.ziplab_in1k")
    assert (settings.model.drop_path_rate, optimizer.weight_decay, optimizer.lr) == (0.5, 1e-8, 2 * 2e-5)
    assert (schedule.epochs, schedule.cooldown_epochs, schedule.warmup_epochs) == (30, 0, 5)
    assert (schedule.warmup_lr, schedule.min_lr) == (2 * 2e-8, 2 * 2e-7)


def test_groups_hold_no_stray_files():
    groups = {path.name for path in HOME.iterdir() if path.is_dir() and path.name != "__pycache__"}
    parts = {"data", "model", "detector", "segmentor", "augment", "optimizer", "schedule", "runtime", "logger", "run"}
    assert groups == {*TASKS, *parts}
    for file in HOME.glob("*/*.yaml"):
        assert OmegaConf.is_config(OmegaConf.load(file)), file


@pytest.mark.parametrize("family", ["ravlt", "mavit"])
@pytest.mark.parametrize(("size", "drop_path"), [("tiny", 0.1), ("small", 0.15), ("base", 0.4), ("large", 0.55)])
def test_published_hyperparameters_of_ravlt(family, size, drop_path):
    """The official main.py and run script, which states rates for 512 images."""
    settings = settings_of(f"classification/{family}_{size}_in1k", "data.root=/data")
    assert (settings.model.name, settings.model.drop_path_rate) == (f"{family}_{size}", drop_path)
    optimizer, schedule, augment = settings.optimizer, settings.schedule, settings.augment
    assert (settings.batch_size, optimizer.name, optimizer.lr) == (8 * 128, "adamw", 2 * 5e-4)
    assert (optimizer.weight_decay, optimizer.clip, optimizer.eps) == (0.05, None, 1e-8)
    assert optimizer.ema_decay == pytest.approx(0.99996**2, abs=1e-8)
    assert (schedule.name, schedule.epochs, schedule.cooldown_epochs) == ("cosine", 300, 0)
    assert (schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == (5, 1e-6, 1e-5)
    assert (augment.mixup, augment.cutmix, augment.auto_augment) == (0.8, 1.0, "rand-m9-mstd0.5-inc1")
    assert (augment.interpolation, augment.erase_prob, settings.runtime.precision) == ("bicubic", 0.25, "float16")
