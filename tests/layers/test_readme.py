"""The page on adding a mixer: its file and its line, as written, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Trains one model on the new mixer in every block and shows that it is the copy that ran.
TRAIN = """
import torch
from saccade.layers import MIXERS
from saccade.layers.pooling import Pooling

assert MIXERS["pooling"] is Pooling and Pooling.__module__ == "saccade.layers.pooling"
mixers = [stage.blocks[0].mixer for stage in model.stages]
assert [type(mixer).__name__ for mixer in mixers] == ["Pooling"] * 2 + ["NeighborhoodAttention"] * 2
assert [mixer.window for mixer in mixers[:2]] == [5, 3]

torch.manual_seed(0)
model = timm.create_model("pyramid_nano", mixer="pooling", num_classes=4)
images, targets = torch.randn(8, 3, 33, 47), torch.arange(8) % 4
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[2] < losses[0], losses
for body in ("any_deit_tiny", "any_pvt_v2_b0", "nat_nano"):
    assert timm.create_model(body, mixer="pooling", num_classes=4).eval()(images[:1]).shape == (1, 4)
try:
    timm.create_model("pyramid_nano", mixer="pooling", mixer_kwargs={"windows": 5})
except ValueError as error:
    assert str(error) == "windows=5 is no hyper-parameter of mixer 'pooling'; valid: window", error
print(saccade.__file__)
"""


def test_adding_a_mixer_is_one_file_and_one_line(tmp_path):
    page = (ROOT / "layers" / "README.md").read_text()
    file, line, use = re.findall(r"```python\n(.*?)```", page, re.S)
    assert line.count("\n") == 1
    copy = tmp_path / "saccade"
    for part in ("kernels", "layers", "models"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", copy)
    (copy / "layers" / "pooling.py").write_text(file)
    imports = copy / "layers" / "__init__.py"
    before, after = imports.read_text().split("from .position import", 1)
    imports.write_text(f"{before}{line}from .position import{after}")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", use + TRAIN]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(copy / "__init__.py")
    check = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", copy / "layers" / "pooling.py"]
    checked = subprocess.run(check, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
