"""`Recipe`, and reading one from a name, a path, a dict or a sequence of passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.ir.errors import PlanishError
from planish.passes import name_of
from planish.passes.contract import Pass, options_of
from planish.recipes.check import Check, Isolation, Target, shown, suggestion
from planish.recipes.document import Document, KeyPath, Problem, dump, parse

ZOO = Path(__file__).parent / "zoo"
"""Where the ready recipes lie."""

PYTHON = "python"
"""The name of a recipe that was made in Python."""


class BadRecipe(PlanishError):
    """A recipe has mistakes; the message lists them all."""


class UnknownRecipe(PlanishError):
    """There is no recipe of a name, and no file at a path."""


@dataclass(frozen=True)
class Recipe:
    """What to do with a model.

    Attributes:
        name: of a ready recipe, of a file without its suffix, or `"python"`.
        passes: what to run, in order.
        description: for people.
        isolation: what is asked of the result.
        target: what to lower to.
        decode: what to run, in order, on the model as it was captured, for a second form of a
            language model that reads single new tokens; empty where one form reads everything.
        text: the file as it was read; empty for a recipe made in Python.
    """

    name: str
    passes: tuple[Pass, ...]
    description: str = ""
    isolation: Isolation = "enforce"
    target: Target = "onnx"
    decode: tuple[Pass, ...] = ()
    text: str = dataclasses.field(default="", compare=False, repr=False)

    def to_yaml(self) -> str:
        """The recipe with every option spelled out, so that later defaults do not change it."""
        said = {"description": self.description} if self.description else {}
        settings = {"isolation": self.isolation, "target": self.target}
        lists = {"passes": _spelled(self.passes)}
        lists |= {"decode": _spelled(self.decode)} if self.decode else {}
        return dump({**said, **settings, **lists})


def _spelled(passes: Sequence[Pass]) -> list[Any]:
    """Passes as a recipe lists them, with every option."""
    return [{name_of(one): options_of(one)} if options_of(one) else name_of(one) for one in passes]


def load(recipe: Recipe | str | Path | Mapping[str, Any] | Sequence[Pass]) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: the name of a ready recipe, the path of a YAML file, the contents of one as a
            dict, or passes.

    Raises:
        UnknownRecipe: if there is no such name or file.
        BadRecipe: listing every mistake, with its place where it was read from a file.
    """
    match recipe:
        case Recipe():
            return recipe
        case str() if recipe in zoo_files():
            return _read(zoo_files()[recipe])
        case str() | Path():
            return _read(_existing(recipe))
        case Mapping():
            return _checked(PYTHON, PYTHON, Document(_as_lists(recipe)))
    return _checked(PYTHON, PYTHON, Document({"passes": list(recipe)}))


def zoo() -> dict[str, str]:
    """The ready recipes: what each does, by name."""
    return {name: _read(path).description for name, path in zoo_files().items()}


def zoo_files() -> dict[str, Path]:
    """The files of the ready recipes by name."""
    files = sorted(ZOO.glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: path for path in files}


def _existing(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise UnknownRecipe(f"{path}: no such file.")
    hint = suggestion(str(recipe), zoo_files())
    raise UnknownRecipe(
        f"no recipe is named {shown(str(recipe))}{hint}{'' if hint.endswith('?') else '.'} "
        "A recipe of your own is given by the path of its .yaml file."
    )


def _read(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadRecipe(f"{path}: not text in UTF-8 ({error.reason}).") from None
    except OSError as error:
        raise BadRecipe(f"{path}: cannot be read ({error.strerror}).") from None
    return dataclasses.replace(_checked(path.stem, str(path), parse(text)), text=text)


def _checked(name: str, origin: str, document: Document) -> Recipe:
    check = None if document.value is None and document.problems else Check(document.value)
    problems = [*document.problems, *(check.problems if check else ())]
    if check is None or problems:
        raise BadRecipe(_listed(origin, document, problems))
    return Recipe(name, **check.fields)


def _listed(origin: str, document: Document, problems: Sequence[Problem]) -> str:
    """One mistake a line, in the order of the file."""
    lines = []
    for problem in sorted(problems, key=document.mark):
        mark = document.mark(problem)
        place = f"{origin}:{mark.line}:{mark.column}" if problem.mark or document.values else origin
        path = path_text(problem.path)
        lines.append(f"{place}: {path}: {problem.what}" if path else f"{place}: {problem.what}")
    return "\n".join(lines)


def path_text(path: KeyPath) -> str:
    """A path as people write it: `passes[0].cast.dtype`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def _as_lists(value: Any) -> Any:
    """A value made in Python as YAML would give it: sequences as lists."""
    if isinstance(value, Mapping):
        return {key: _as_lists(inner) for key, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value
