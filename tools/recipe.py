"""The recipes: which there are, where they lie, and what their headers say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError, closest

HOME = Path(__file__).resolve().parent.parent / "recipes"
# The directories whose files are complete recipes; the others hold parts.
TASKS = ("classification", "detection", "segmentation")
DEFAULT = "classification/quickstart"


@dataclass(frozen=True)
class Recipe:
    """A recipe by name; `directory` is where its file lies if that is outside the package."""

    name: str
    directory: Path | None = None


def recipe_names(tasks: Iterable[str] = TASKS) -> list[str]:
    """Every complete recipe, as it is written on the command line, or those of some tasks."""
    return sorted(f"{task}/{file.stem}" for task in tasks for file in (HOME / task).glob("*.yaml"))


def is_recipe(word: str) -> bool:
    """Whether a word on the command line can only mean a recipe: the name of one, or a YAML file."""
    return word in recipe_names() or word.endswith((".yaml", ".yml"))


def find_recipe(word: str) -> Recipe:
    """The recipe a word on the command line means: a name, or the path of a YAML file of one's own.

    Errors:
        UserError: neither; the message names the closest recipes.
    """
    if word.endswith((".yaml", ".yml")):
        path = Path(word)
        if not path.is_file():
            raise UserError(f"no such recipe file: {word}")
        return Recipe(path.stem, path.resolve().parent)
    names = recipe_names()
    if word in names:
        return Recipe(word)
    short = closest(word.rpartition("/")[2], {name.rpartition("/")[2] for name in names}, most=3)
    near = closest(word, names, most=3) or [name for name in names if name.rpartition("/")[2] in short]
    hint = f"did you mean {' or '.join(near)}?" if near else "saccade list recipes shows them all"
    raise UserError(f"unknown recipe {word!r}: {hint}")


def header(name: str) -> list[str]:
    """The lines of a recipe's header comment, without its `# @package` line and the comment signs."""
    lines = []
    for line in (HOME / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def describe_recipes() -> str:
    """A line per recipe: its name and the first line of its header."""
    names = recipe_names()
    width = max(map(len, names), default=0)
    return "\n".join(f"  {name:{width}}  {(header(name) or [''])[0]}" for name in names)
