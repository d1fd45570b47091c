"""`saccade benchmark kernels`: an operator forward and with gradients, beside other formulations and its marks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ...kernels.dispatch import Operator
from ..errors import UserError
from ..words import read_device, read_list, read_number, read_words
from .problem import Case, Draw, Formulation, Problem
from .report import collect, one_line, table
from .timing import CaptureError, device_time

OPERATORS = ("neighborhood", "large_kernel", "depthwise", "focal", "window", "linear", "agent", "gated_linear")
BASELINES = ("eager", "compile")
Take = Callable[[dict[str, float | str]], None]
"""Times something, and puts what it finds under its name at once."""

OURS, FLOOR = "saccade", "copy of its memory"


def cases_of(operator: str) -> Sequence[Case]:
    """Return the cases of an operator's table."""
    return import_module(f".operators.{operator}", __package__).CASES


def rows(
    operator: str,
    device: torch.device,
    baselines: Sequence[str] = BASELINES,
    chosen: str = "",
    budget: float = float("inf"),
) -> Iterator[dict]:
    """Time an operator's cases: ours in all of them, then the eager formulations, then the compiled ones.

    What fails says why in its row, and the next is timed.

    Args:
        baselines: which of "eager" and "compile" are put beside ours.
        chosen: only cases whose name contains this.
        budget: seconds for what is beside ours, after which no more of it is timed.
    """
    cuda = device.type == "cuda"
    cases = [case for case in cases_of(operator) if chosen in str(case)]
    if not cuda:
        cases = list(dict.fromkeys(case.reduced() for case in cases))
    draw = Draw(device, torch.bfloat16 if cuda else torch.float32)
    end = float("inf")
    for phase in (OURS, *(name for name in BASELINES if name in baselines)):
        if phase != OURS:
            end = min(end, time.monotonic() + budget)
        for case in cases:
            try:
                torch.manual_seed(0)
                problem = case.problem(draw)
                ways = measurements(problem, phase, device)
            except Exception as error:
                yield {"operator": operator, "case": str(case), "implementation": phase, "error": one_line(error)}
                continue
            for name, take in ways.items():
                row = {"operator": operator, "case": str(case), "implementation": name}
                if time.monotonic() > end:
                    row["error"] = f"not measured: budget={budget:g} s was used up"
                else:
                    row |= attempt(take)
                yield judge(row, case) if name == OURS else row


def attempt(take: Take) -> dict[str, float | str]:
    """Return what `take` finds, and if it fails what it found before and why."""
    found: dict[str, float | str] = {}
    try:
        take(found)
    except Exception as error:
        # Memory, a shape that an implementation does not take, a kernel's fault: the table says so and goes on.
        found["error"] = one_line(error)
    # What the graph of one held is the next one's to use; nothing happens where there is no GPU.
    torch.cuda.empty_cache()
    return found


def measurements(problem: Problem, phase: str, device: torch.device) -> dict[str, Take]:
    """Return what takes the times of a phase, by the name in the table."""
    inputs, others = problem.inputs, problem.others
    if phase == OURS:
        return {OURS: partial(measure_ours, problem, device)}
    if phase == "compile":
        return {
            f"{name}, compiled": partial(measure, way, inputs, device, compiled=True)
            for name, way in others.items()
            if way.compiled
        }
    eager = {name: partial(measure, way, inputs, device) for name, way in others.items()}
    return {FLOOR: partial(measure_floor, problem, device), **eager}


def measure_ours(problem: Problem, device: torch.device, found: dict[str, float | str]) -> None:
    """Find the times of our operator, and the backends that served it."""
    with backends_used() as used:
        measure(Formulation(problem.ours), problem.inputs, device, found)
    found["backends"] = ", ".join(f"{direction} {backend}" for direction, backend in sorted(used))


@contextmanager
def backends_used() -> Iterator[set[tuple[str, str]]]:
    """Collect the direction and the name of each backend that is chosen inside the block."""
    used: set[tuple[str, str]] = set()
    choose = Operator.choose

    def watched(operator: Operator, name: str, direction: str, *call: object) -> ModuleType:
        module = choose(operator, name, direction, *call)
        used.add((direction, module.__name__.rpartition(".")[2]))
        return module

    Operator.choose = watched
    try:
        yield used
    finally:
        Operator.choose = choose


def measure_floor(problem: Problem, device: torch.device, found: dict[str, float | str]) -> None:
    """Find the times of copies that move as many bytes as the operator must.

    Forward, these are its inputs and its output; with gradients these, and the inputs, the output's gradient and the
    inputs' gradients.
    """
    inputs = sum(map(_bytes, problem.inputs.values()))
    with torch.no_grad():
        output = _bytes(problem.ours(**problem.inputs))
    for name, moved in (("forward_ms", inputs + output), ("forward_backward_ms", 3 * inputs + 2 * output)):
        # A copy moves its bytes twice: it reads them and writes them.
        found[name] = device_time(torch.empty(moved // 2, dtype=torch.uint8, device=device).clone, device)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def measure(
    way: Formulation,
    inputs: dict[str, Tensor],
    device: torch.device,
    found: dict[str, float | str],
    compiled: bool = False,
) -> None:
    """Find the times of a formulation, forward and with the gradients of all its inputs."""
    found["equivalent"] = way.equivalent
    function = way.function
    if compiled:
        torch.compiler.reset()
        function = torch.compile(function, dynamic=False)
    inputs = {name: x.detach().requires_grad_() for name, x in way.prepare(inputs).items()}

    def infer() -> Tensor:
        with torch.no_grad():
            return function(**inputs)

    dout = torch.randn_like(infer())

    def train() -> object:
        return torch.autograd.grad(function(**inputs), list(inputs.values()), dout)

    for name, call in (("forward_ms", infer), ("forward_backward_ms", train)):
        try:
            found[name] = device_time(call, device)
        except CaptureError:
            found[name] = device_time(call, device, graph=False)
            found["note"] = "not as a CUDA graph"


def judge(row: dict, case: Case) -> dict:
    """Return our row with its marks, and whether both are met."""
    if case.marks is None:
        return row
    marks = {"forward_mark_ms": case.marks.forward, "forward_backward_mark_ms": case.marks.forward_backward}
    met = all(row.get(name.replace("_mark", ""), float("inf")) <= mark for name, mark in marks.items())
    return {**row, **marks, "met": met}


def summary(rows: Sequence[dict]) -> str:
    """Return the rows as a Markdown table with a line for each case: ours, marks, the others' best, what is beside."""
    lines = []
    for operator, case in dict.fromkeys((row["operator"], row["case"]) for row in rows):
        mine = {row["implementation"]: row for row in rows if (row["operator"], row["case"]) == (operator, case)}
        ours, copy = mine.pop(OURS, {}), mine.pop(FLOOR, {})
        marks = ours.get("forward_mark_ms"), ours.get("forward_backward_mark_ms")
        met = {True: "yes", False: "NO", None: ""}[ours.get("met")]
        beside = [f"{name} {_pair(row)}" for name, row in mine.items() if not row.get("equivalent")]
        lines.append(
            (
                operator,
                case,
                _pair(ours),
                ours.get("backends", ""),
                _two(*marks),
                met,
                _best(mine),
                "; ".join(beside),
                _pair(copy),
            )
        )
    header = ("operator", "case", OURS, "backends", "mark", "met", "best that computes the same", "beside it", FLOOR)
    return f"Milliseconds forward, and forward + backward.\n\n{table(header, lines)}"


def _best(mine: dict[str, dict]) -> str:
    """Return the best forward and the best with gradients, with the names of what reached them."""
    best = []
    for name in ("forward_ms", "forward_backward_ms"):
        found = [(row[name], way) for way, row in mine.items() if name in row and row.get("equivalent")]
        best.append("{:.3g} ({})".format(*min(found)) if found else "-")
    return ", ".join(best) if any(row.get("equivalent") for row in mine.values()) else ""


def _pair(row: dict) -> str:
    if "error" in row and "forward_ms" not in row:
        return f"failed: {row['error']}".replace("|", "/")
    return _two(row.get("forward_ms"), row.get("forward_backward_ms"))


def _two(forward: float | None, both: float | None) -> str:
    if forward is None:
        return ""
    return f"{forward:.3g}, " + ("failed" if both is None else f"{both:.3g}")


def main(words: list[str]) -> None:
    """Run from the command line.

    Errors:
        UserError: a word is not one of the settings, or a value of one not valid.
    """
    settings = {"op": "neighborhood", "baselines": ",".join(BASELINES), "cases": "", "budget": "60"}
    settings = read_words(words, {**settings, "device": "auto", "out": "benchmarks"}, "benchmark kernels")
    device = read_device(settings["device"])
    baselines = read_list("baselines", settings["baselines"], BASELINES)
    budget = read_number("budget", settings["budget"], least=0)
    operators = read_list("op", settings["op"], (*OPERATORS, "all"))
    operators = list(OPERATORS) if "all" in operators else operators
    chosen = settings["cases"]
    if not any(chosen in str(case) for operator in operators for case in cases_of(operator)):
        known = "; ".join(str(case) for operator in operators for case in cases_of(operator))
        raise UserError(f"cases={chosen} is in the name of no case of op={settings['op']}: {known or 'there are none'}")
    found = (rows(operator, device, baselines, chosen, budget) for operator in operators)
    name = operators[0] if len(operators) == 1 else "kernels"
    collect(name, chain.from_iterable(found), Path(settings["out"]), device, summary)
