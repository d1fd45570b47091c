"""Without the toolboxes, detection and segmentation say what to do, and nothing else notices."""

import subprocess
import sys

import pytest

from saccade.tools.dense import toolboxes

COMMAND = "make dense in saccade's checkout installs them"


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_one_line_names_the_command(saccade, tmp_path, monkeypatch, task):
    monkeypatch.setattr(toolboxes, "find_spec", lambda name: None)
    for verb, words in (("train", ()), ("evaluate", ("checkpoint=weights.pth",)), ("predict", ("weights.pth",))):
        (tmp_path / "weights.pth").touch()
        outcome = saccade(verb, f"{task}/quickstart", *words)
        if verb == "predict":  # which names the run to predict with first
            continue
        assert outcome.code == 1 and COMMAND in outcome.err and outcome.err.count("\n") == 1
        assert "onedl-mmcv" in outcome.err and "onedl-mmdetection" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_operators_that_were_not_compiled_are_missing_too(saccade, monkeypatch):
    monkeypatch.setattr(toolboxes, "find_spec", lambda name: None if name == "mmcv._ext" else object())
    outcome = saccade("train", "detection/quickstart")
    assert outcome.code == 1 and "compiled operators of onedl-mmcv" in outcome.err and COMMAND in outcome.err


def test_nothing_else_imports_them():
    """Neither the package nor the commands of other tasks, and composing a recipe does without as well."""
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('mmcv', 'mmengine', 'mmdet', 'mmseg'):\n"
        "            raise AssertionError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import saccade\n"
        "from saccade.tools import data, evaluate, predict, train\n"
        "from saccade.tools.__main__ import main\n"
        "sys.exit(main(['train', 'detection/quickstart', '--cfg', 'job']))\n"
    )
    answer = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert answer.returncode == 0 and "make: shapes" in answer.stdout, answer.stderr
