"""LICENSES.md: every family says where its method and its weights come from, as its pretrained cfgs do."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from timm.models import get_arch_pretrained_cfgs

from saccade.tools.checkpoints import families

ROOT = Path(__file__).parents[1]
ROWS = {
    cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
    for line in (ROOT / "LICENSES.md").read_text().splitlines()
    if line.startswith("| `") and (cells := line.strip("|").split("|"))
}
FAMILIES = {module.__name__.split(".")[-1]: names for module, names in families()}


def test_every_family_has_a_row():
    assert ROWS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_says_what_the_cfgs_say(family):
    method, code, files, terms = ROWS[family]
    for name in FAMILIES[family]:
        for cfg in get_arch_pretrained_cfgs(name).values():
            host = urlsplit(cfg.url).hostname if cfg.url else ("huggingface.co" if cfg.hf_hub_id else "")
            papers = [cfg.paper_ids] if isinstance(cfg.paper_ids, str) else cfg.paper_ids
            assert all(paper.removeprefix("arXiv:") in method for paper in papers)
            assert cfg.origin_url in code and cfg.license in code
            assert host in files and cfg.license in terms


def test_no_weights_are_kept_here():
    kinds = {".pth", ".pt", ".ckpt", ".safetensors", ".npz", ".npy", ".bin", ".onnx", ".tar", ".zip"}
    parts = ("kernels", "layers", "models", "recipes", "tools", "tests")
    files = [path for part in parts for path in (ROOT / part).rglob("*") if path.is_file()]
    assert len(files) > 100
    assert [str(path) for path in files if path.suffix in kinds] == []
