"""The choice of backend: forced, refused, explained."""

import pytest
import torch

import saccade
from saccade.kernels import dispatch
from saccade.kernels.neighborhood import neighborhood_attention, reference

QKV = torch.randn(3, 1, 5, 5, 2, 4).unbind(0)


def test_a_forced_backend_runs(monkeypatch):
    calls = []
    forward = reference.forward
    monkeypatch.setattr(reference, "forward", lambda *call: calls.append(1) or forward(*call))
    neighborhood_attention(*QKV, 3)
    assert not calls, "auto prefers the faster backend"
    with saccade.backend("reference"):
        neighborhood_attention(*QKV, 3)
    assert len(calls) == 1
    monkeypatch.setenv("SACCADE_BACKEND", "reference")
    neighborhood_attention(*QKV, 3)
    assert len(calls) == 2
    with saccade.backend("blocked"):
        neighborhood_attention(*QKV, 3)
    assert len(calls) == 2, "the context manager goes before the environment"


def test_blocks_nest_and_end_on_errors():
    with saccade.backend("blocked"):
        with pytest.raises(RuntimeError), saccade.backend("reference"):
            raise RuntimeError
        assert dispatch.requested() == "blocked"
    assert dispatch.requested() == "auto"


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match=r"backend='fast' is not a backend; valid: 'auto', 'reference'"):
        saccade.backend("fast").__enter__()
    monkeypatch.setenv("SACCADE_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"SACCADE_BACKEND='fast' is not a backend"):
        neighborhood_attention(*QKV, 3)


def test_a_forced_backend_that_cannot_serve_says_why():
    with saccade.backend("fused"), pytest.raises(RuntimeError, match=r"fused: "):
        neighborhood_attention(*(x.double() for x in QKV), 3)


def test_explain():
    lines = saccade.explain(neighborhood_attention, *QKV, 3).splitlines()
    assert "-> forward  blocked   runs" in lines
    assert any(line.startswith("   forward  reference could run") for line in lines)
    with saccade.backend("reference"):
        assert "-> forward  reference runs" in saccade.explain(neighborhood_attention, *QKV, 3)
    with pytest.raises(TypeError, match=r"is not a saccade operator"):
        saccade.explain(torch.add, 1, 2)
    with pytest.raises(ValueError, match=r"window=9"):
        saccade.explain(neighborhood_attention, *QKV, 9)


def test_compiled_code_follows_the_forced_backend():
    function = torch.compile(lambda q, k, v: neighborhood_attention(q, k, v, 3), fullgraph=True, backend="eager")
    function(*QKV)
    with saccade.backend("fused"), pytest.raises(RuntimeError, match=r"fused: "):
        function(*QKV)
    function(*QKV)


def test_a_missing_package_is_looked_for_once(monkeypatch):
    imports = []

    def fail(name):
        imports.append(name)
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(dispatch.importlib, "import_module", fail)
    operator = dispatch.Operator("saccade.kernels.neighborhood", ("fused",))
    assert [operator.why_not("fused", "forward") for _ in range(3)] == ["triton is not installed"] * 3
    assert imports == ["saccade.kernels.neighborhood.fused"]
