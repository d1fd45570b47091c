"""Rows of figures on the screen, in files and as a picture, with what they depend on."""

from __future__ import annotations

import csv
import datetime
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import timm
import torch

from ... import __version__

ON_A_CPU = "Reduced sizes on a CPU: the figures are this CPU's, and no mark is judged."


def environment(device: torch.device) -> dict:
    """What the figures depend on."""
    versions = {"saccade": __version__, "torch": torch.__version__, "timm": timm.__version__}
    about = {"date": datetime.date.today().isoformat()}
    if device.type == "cuda":
        return {**about, "device": torch.cuda.get_device_name(), **versions, "cuda": torch.version.cuda}
    name = platform.processor() or platform.machine()
    return {**about, "device": name, **versions, "note": ON_A_CPU}


def one_line(error: BaseException) -> str:
    """Return what kind of error it is and the first line of what it says."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def show(row: dict) -> str:
    """Return a row as one line."""
    figures = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)]
    if "met" in row:
        figures.append("mark met" if row["met"] else "MARK MISSED")
    figures += [value for key, value in row.items() if key.endswith(("backends", "note", "error"))]
    return "  ".join((f"{row['case']:50}", f"{row['implementation']:34}", *figures))


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def save(name: str, rows: list[dict], folder: Path, device: torch.device) -> None:
    """Write the rows as JSON with what they depend on, and as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps({"environment": environment(device), "rows": rows}, indent=1) + "\n"
    )
    columns = dict.fromkeys(key for row in rows for key in row)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def collect(
    name: str, found: Iterable[dict], folder: Path, device: torch.device, summary: Callable[[list[dict]], str]
) -> list[dict]:
    """Print and save rows as they come, with a summary of all in `<name>.md`, then draw them."""
    if device.type == "cpu":
        print(ON_A_CPU)
    rows: list[dict] = []
    for row in found:
        rows.append(row)
        print(show(row), flush=True)
        save(name, rows, folder, device)
        (folder / f"{name}.md").write_text(f"{', '.join(environment(device).values())}\n\n{summary(rows)}\n")
    print(summary(rows))
    write_rows(name, rows, folder, device)
    return rows


def write_rows(name: str, rows: list[dict], folder: Path, device: torch.device) -> None:
    """Write the rows with what they depend on, and the picture of them where matplotlib is installed."""
    save(name, rows, folder, device)
    about = environment(device)
    try:
        draw(rows, folder / f"{name}.png", f"{name}, {about['device']}, {about['date']}")
    except ModuleNotFoundError as error:
        print(f"wrote {folder / name}.json and .csv; no picture, {error.name} is not installed")
        return
    print(f"wrote {folder / name}.json, .csv and .png")


def draw(rows: list[dict], path: Path, title: str) -> None:
    """Draw every measure of the rows as bars on a logarithmic scale; marks are no measures."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    measured = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, float))
    measures = [key for key in measured if "mark" not in key]
    if not measures:
        return
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    figure, axes = pyplot.subplots(1, len(measures), figsize=(7 * len(measures), 1.5 + 0.7 * len(cases)), squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        for n, name in enumerate(names):
            mine = [row for row in rows if row["implementation"] == name and row.get(measure)]
            places = [cases.index(row["case"]) + 0.8 * (n + 0.5) / len(names) - 0.4 for row in mine]
            axis.barh(places, [row[measure] for row in mine], 0.7 / len(names), label=name)
        axis.set(xscale="log", xlabel=measure.replace("_", " "), yticks=range(len(cases)))
        axis.set_yticklabels(cases if axis is axes[0][0] else [])
        axis.invert_yaxis()
    axes[0][0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
