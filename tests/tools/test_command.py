"""The command line: verbs, help, lists, and how words are sorted."""

import subprocess
import sys

import pytest

from saccade import list_models
from saccade.tools import launch
from saccade.tools.errors import UserError
from saccade.tools.help import VERBS
from saccade.tools.launch import sort_words
from saccade.tools.recipe import DEFAULT, recipe_names


def test_help_of_the_command_and_of_every_verb(saccade):
    for words in ((), ("--help",), ("-h",)):
        assert all(verb in saccade(*words).out for verb in VERBS)
    for verb in VERBS:
        outcome = saccade(verb, "--help")
        assert outcome.code == 0 and outcome.out.startswith(f"usage: saccade {verb}")
    for verb in ("train", "evaluate"):
        assert all(name in saccade(verb, "--help").out for name in recipe_names())


def test_module_and_script_are_the_same_command():
    answer = subprocess.run([sys.executable, "-m", "saccade.tools", "trian"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "saccade: unknown verb 'trian': did you mean train?\n"


def test_words_are_sorted():
    words = sort_words(
        ["a.b=c", "classification/nat_tiny_in1k", "--multirun", "--cfg", "job", "+x=1", "~y", "-p", "model"]
    )
    assert words.recipe.name == "classification/nat_tiny_in1k" and words.recipe.directory is None
    assert words.flags == ["--multirun", "--cfg", "job", "-p", "model"]
    assert words.overrides == ["a.b=c", "+x=1", "~y"]
    assert sort_words(["a=b"]).recipe.name == DEFAULT
    with pytest.raises(UserError, match="unexpected word 'lr'"):
        sort_words([DEFAULT, "lr"])


def test_list_models(saccade):
    out = saccade("list").out
    assert all(f"\n{name} " in out for name in list_models())
    assert "resnet50" not in out
    nat = next(line for line in saccade("list", "nat_tiny").out.splitlines() if line.startswith("nat_tiny "))
    assert nat.split()[1:] == ["27.90M", "3x224x224", "shi_in1k", "(83.2)"]
    small = saccade("list", "nat_*", "--pretrained").out
    assert "nat_mini" in small and "nat_nano" not in small and "dinat" not in small


def test_list_recipes(saccade):
    out = saccade("list", "recipes").out
    assert [line.split()[0] for line in out.splitlines()] == recipe_names()
    assert DEFAULT in out


def test_list_names_what_it_does_not_know(saccade):
    outcome = saccade("list", "nat_tony")
    assert outcome.code == 1 and "'nat_tony'" in outcome.err and "nat_tiny" in outcome.err
    assert "'--pretraind'" in saccade("list", "--pretraind").err


def test_cfg_prints_the_recipe_and_makes_nothing(saccade, tmp_path):
    outcome = saccade("train", "--cfg", "job", "optimizer.lr=0.125")
    assert outcome.code == 0 and "lr: 0.125" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_pip_command(saccade, monkeypatch):
    for module in ("hydra", "omegaconf"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in [name for name in sys.modules if name.startswith(("saccade.tools.train", "saccade.tools.engine"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    outcome = saccade("train")
    assert outcome.code == 1
    assert outcome.err.startswith("saccade: this needs hydra-core, ") and "pip install hydra-core" in outcome.err
    assert outcome.err.count("\n") == 1
    assert saccade("list", "nat_nano").code == 0


def test_debug_shows_the_traceback(saccade, monkeypatch):
    monkeypatch.setenv("SACCADE_DEBUG", "1")
    with pytest.raises(UserError, match="unknown model 'nat_nono'"):
        saccade("train", "model.name=nat_nono")
