"""Timing an operator's table: phases, failures, the budget, marks, and the command."""

import csv
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

import saccade as saccade_package
from saccade.tools.benchmark import kernels
from saccade.tools.benchmark.kernels import FLOOR, OURS, judge, rows, summary
from saccade.tools.benchmark.operators import large_kernel, window

CPU = torch.device("cpu")


def fails(*args, **kwargs):
    raise RuntimeError("out of registers\nmore")


def test_every_formulation_is_timed_ours_first():
    found = list(rows("window", CPU, ("eager",)))
    assert [row["implementation"] for row in found[:2]] == [OURS, OURS]
    assert Counter(row["implementation"] for row in found) == dict.fromkeys(
        (OURS, FLOOR, "torch", "torch SDPA", "torch, on windows cut before", "torch SDPA, on windows cut before"), 2
    )
    assert all(row["forward_ms"] > 0 and row["forward_backward_ms"] > 0 and "error" not in row for row in found)
    assert all("met" not in row for row in found)


def test_compiled_formulations_come_last(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(options) or function)
    found = list(rows("agent", CPU, ("compile", "eager"), chosen="agents 9"))
    assert [row["implementation"] for row in found] == [OURS, FLOOR, "torch SDPA", "torch", "torch SDPA, compiled"]
    assert compiled == [{"dynamic": False}]


def test_what_fails_hides_nothing_else(monkeypatch):
    monkeypatch.setattr(window, "softmax", fails)
    found = {row["implementation"]: row for row in rows("window", CPU, ("eager",), chosen="window 7")}
    assert found["torch, on windows cut before"]["error"] == "RuntimeError: out of registers"
    assert "forward_ms" not in found["torch, on windows cut before"]
    assert sum("error" in row for row in found.values()) == 2
    assert found[OURS]["forward_ms"] > 0 and found["torch SDPA"]["forward_backward_ms"] > 0
    monkeypatch.setattr(window, "window_attention", fails)
    found = {row["implementation"]: row for row in rows("window", CPU, ("eager",), chosen="window 7")}
    assert found[OURS]["error"] == found[FLOOR]["error"] == "RuntimeError: out of registers"
    assert "failed: RuntimeError: out of registers" in summary(list(found.values()))
    assert found["torch SDPA"]["forward_ms"] > 0


def test_a_case_that_cannot_be_made_is_a_row(monkeypatch):
    monkeypatch.setattr(large_kernel, "both_layouts", fails)
    (row,) = rows("large_kernel", CPU, (), chosen="128x7x7")
    assert row["implementation"] == OURS and row["error"] == "RuntimeError: out of registers"


def test_what_is_found_before_a_failure_is_kept(monkeypatch):
    times = iter([0.5])
    monkeypatch.setattr(kernels, "device_time", lambda call, device: next(times))
    (row,) = rows("window", CPU, (), chosen="window 7")
    assert row["forward_ms"] == 0.5 and "forward_backward_ms" not in row and row["error"] == "StopIteration"
    assert "0.5, failed" in summary([row])


def test_a_graph_that_cannot_be_captured_is_timed_by_launches(monkeypatch):
    def times(call, device, graph=True):
        if graph:
            raise kernels.CaptureError("not permitted when stream is capturing")
        return 2.0

    monkeypatch.setattr(kernels, "device_time", times)
    (row,) = rows("window", CPU, (), chosen="window 7")
    assert (row["forward_ms"], row["forward_backward_ms"], row["note"]) == (2.0, 2.0, "not as a CUDA graph")


def test_backends_that_served_ours_are_told():
    choose = kernels.Operator.choose
    (row,) = rows("linear", CPU, (), chosen="heads 2")
    assert row["backends"] == "backward blocked, forward blocked"
    with saccade_package.backend("reference"):
        (row,) = rows("linear", CPU, (), chosen="heads 2")
    assert row["backends"] == "backward reference, forward reference"
    assert kernels.Operator.choose is choose


def test_budget_ends_what_is_beside_ours():
    found = list(rows("window", CPU, ("eager", "compile"), budget=0))
    ours = [row for row in found if row["implementation"] == OURS]
    assert len(ours) == 2 and all(row["forward_ms"] > 0 for row in ours)
    assert all(row["error"] == "not measured: budget=0 s was used up" for row in found if row not in ours)


@pytest.mark.parametrize(
    ("times", "met"),
    [
        ({"forward_ms": 0.25, "forward_backward_ms": 1.2}, True),
        ({"forward_ms": 0.26, "forward_backward_ms": 1.0}, False),
        ({"forward_ms": 0.1, "forward_backward_ms": 1.3}, False),
        ({"forward_ms": 0.1, "error": "failed"}, False),
        ({"error": "failed"}, False),
    ],
)
def test_marks_are_judged(times, met):
    case = large_kernel.CASES[0]
    row = {"operator": "large_kernel", "case": str(case), "implementation": OURS, **times}
    judged = judge(row, case)
    assert judged["met"] is met and (judged["forward_mark_ms"], judged["forward_backward_mark_ms"]) == (0.25, 1.2)
    assert f"|  | 0.25, 1.2 | {'yes' if met else 'NO'} |" in summary([judged])
    assert judge(row, replace(case, marks=None)) == row


def test_summary_takes_the_best_of_each_that_computes_the_same():
    case = {"operator": "linear", "case": "a"}
    table = summary(
        [
            {
                **case,
                "implementation": OURS,
                "forward_ms": 1.0,
                "forward_backward_ms": 3.0,
                "backends": "forward fused",
            },
            {**case, "implementation": FLOOR, "forward_ms": 0.1, "forward_backward_ms": 0.3},
            {**case, "implementation": "p", "equivalent": True, "forward_ms": 2.0, "forward_backward_ms": 9.0},
            {**case, "implementation": "q", "equivalent": True, "forward_ms": 4.0, "forward_backward_ms": 8.0},
            {**case, "implementation": "r", "equivalent": True, "error": "out of memory"},
            {**case, "implementation": "dense", "equivalent": False, "forward_ms": 0.2, "forward_backward_ms": 0.5},
        ]
    )
    assert (
        table.splitlines()[-1]
        == "| linear | a | 1, 3 | forward fused |  |  | 2 (p), 8 (q) | dense 0.2, 0.5 | 0.1, 0.3 |"
    )


def test_command(saccade, tmp_path):
    outcome = saccade("benchmark", "kernels", "op=window,linear", "baselines=eager", "device=cpu", "out=here")
    assert outcome.code == 0 and "this CPU's" in outcome.out
    report = json.loads((tmp_path / "here/kernels.json").read_text())
    assert "this CPU's" in report["environment"]["note"]
    with (tmp_path / "here/kernels.csv").open() as file:
        assert [row["implementation"] for row in csv.DictReader(file)] == [
            row["implementation"] for row in report["rows"]
        ]
    assert {row["operator"] for row in report["rows"]} == {"window", "linear"}
    assert all("error" not in row for row in report["rows"])
    assert "| window | 2x14x14 heads 2 dim 8 window 7 |" in (tmp_path / "here/kernels.md").read_text()
    assert (tmp_path / "here/kernels.png").stat().st_size > 5000


def test_every_row_is_saved_when_a_run_is_cut_short(saccade, tmp_path, monkeypatch):
    def cut_short(*settings):
        yield {"operator": "window", "case": "a", "implementation": OURS, "forward_ms": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "rows", cut_short)
    assert saccade("benchmark", "kernels", "op=window", "device=cpu").code == 130
    assert json.loads((tmp_path / "benchmarks/window.json").read_text())["rows"][0]["forward_ms"] == 1.0


def test_without_matplotlib_there_is_no_picture(saccade, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    outcome = saccade("benchmark", "kernels", "op=window", "baselines=", "device=cpu", "cases=window 7")
    assert outcome.code == 0 and "matplotlib is not installed" in outcome.out
    assert (tmp_path / "benchmarks/window.csv").exists() and not (tmp_path / "benchmarks/window.png").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "needs a subject"),
        (["kernels", "op=windows"], "op=windows is not valid: choose from agent, all, depthwise"),
        (["kernels", "baselines=jit"], "baselines=jit is not valid: choose from compile, eager"),
        (
            ["kernels", "op=window", "cases=9x9"],
            "in the name of no case of op=window: 128x56x56 heads 1 dim 32 window 2",
        ),
        (["kernels", "budget=soon"], "budget=soon is not valid: give a whole number of at least 0"),
        (["kernels", "size=3"], "unexpected 'size=3': benchmark kernels takes op=..., baselines=..."),
        (["models", "models=nat_tony"], "unknown models 'nat_tony'"),
        (["models", "sizes=16"], "sizes=16 is not valid: give a whole number of at least 32"),
        (["models", "modes=share"], "modes=share is not valid: a share is of a step, so add infer or train"),
        (["models", "modes="], "at least one of models= and of modes="),
        (["models", "compile=fast"], "compile=fast is not valid: choose from"),
    ],
)
def test_bad_words(saccade, tmp_path, words, told):
    outcome = saccade("benchmark", *words)
    assert outcome.code == 1 and told in outcome.err and outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(saccade):
    assert "torch sees no GPU here" in saccade("benchmark", "kernels", "device=cuda").err
