"""`import saccade`: what it brings, what it leaves alone, and how long it takes."""

import subprocess
import sys

import timm

import saccade

IMPORT = """
import sys, time
import timm
before = set(sys.modules)
start = time.perf_counter()
import saccade
seconds = time.perf_counter() - start
print(seconds, *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_import_is_quick_light_and_quiet():
    # What else a machine does only ever adds time: look again before saying that it is ours.
    for _ in range(5):
        run = subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=True)
        seconds, *packages = run.stdout.split()
        if float(seconds) < 1:
            break
    assert run.stderr == ""
    assert float(seconds) < 1
    unwanted = {"triton", "hydra", "omegaconf", "wandb", "tensorboard", "matplotlib", "sklearn", "natten", "mmengine"}
    assert "saccade" in packages
    assert not unwanted & set(packages)


def test_models_are_ours_and_registered():
    names = saccade.list_models()
    assert names == sorted(names)
    assert {"nat_nano", "nat_tiny", "dinat_large_384_11x11", "vit_rpb_base"} <= set(names)
    assert all(timm.is_model(name) for name in names)
    assert "swin_tiny_patch4_window7_224" not in names
    assert not set(names) & set(timm.list_models(module="swin_transformer"))


def test_list_models_filters_as_timm_does():
    assert saccade.list_models("nat_*", exclude_filters="*isotropic*") == [
        "nat_base",
        "nat_mini",
        "nat_nano",
        "nat_small",
        "nat_tiny",
    ]
    assert saccade.list_models("nat_mini", pretrained=True) == ["nat_mini.shi_in1k"]
    assert saccade.list_models("nat_nano", pretrained=True) == []


def test_public_names():
    assert saccade.__version__
    assert set(saccade.__all__) == {"accelerate", "backend", "explain", "list_models", "restore"}
    for name in saccade.__all__:
        assert getattr(saccade, name).__doc__
