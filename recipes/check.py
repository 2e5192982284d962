"""Check what a recipe says, every mistake at once, and make its passes."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from planish.passes import PASSES
from planish.passes.contract import Pass
from planish.recipes.document import KeyPath, Problem

Isolation = Literal["bitwise", "enforce", "warn", "off"]
"""What is asked of the result: that requests in a batch stay apart bit for bit, that they stay
apart, a warning where they may not, or nothing."""

Target = Literal["onnx", "torch", "triton"]
"""What to lower to: ONNX Runtime, torch run eagerly, or generated GPU kernels."""

KEYS = ("description", "isolation", "target", "passes", "decode")
"""The keys of a recipe."""

PASS_LISTS = ("passes", "decode")
"""Those that hold a list of passes."""


class Check:
    """The check of one recipe. `problems` is empty if it holds.

    Attributes:
        fields: what the recipe says, as the arguments of `Recipe` besides its name.
        problems: every mistake.
    """

    def __init__(self, value: Any) -> None:
        self.fields: dict[str, Any] = {}
        self.problems: list[Problem] = []
        if isinstance(value, Mapping):
            self._recipe(value)
        elif isinstance(value, list):
            self._problem((), "a list; a recipe is a mapping, with the list under the key passes")
        else:
            self._problem((), "a recipe is a mapping with the key passes")

    def _problem(self, path: KeyPath, what: str, *, of_key: bool = False) -> None:
        self.problems.append(Problem(path, what, of_key))

    def _recipe(self, recipe: Mapping[Any, Any]) -> None:
        for key in recipe:
            if key not in KEYS:
                self._problem((key,), f"no such key{suggestion(key, KEYS)}", of_key=True)
        if "description" in recipe:
            self._description(recipe["description"])
        for key, words in (("isolation", get_args(Isolation)), ("target", get_args(Target))):
            if key in recipe:
                self._word(key, recipe[key], words)
        if "passes" not in recipe:
            self._problem((), "the key passes is missing")
        for key in PASS_LISTS:
            if key in recipe:
                self._passes(key, recipe[key])
        if self.fields.get("decode") and self.fields.get("target", "onnx") != "onnx":
            self._problem(
                ("decode",),
                f"is for target onnx, not {self.fields['target']}: other targets run one program",
                of_key=True,
            )

    def _description(self, value: Any) -> None:
        if isinstance(value, str):
            self.fields["description"] = value.strip()
        else:
            self._problem(("description",), f"must be text, not {shown(value)}")

    def _word(self, key: str, value: Any, words: tuple[str, ...]) -> None:
        if value in words:
            self.fields[key] = value
        else:
            self._problem((key,), f"cannot be {shown(value)}{suggestion(value, words)}")

    def _passes(self, key: str, items: Any) -> None:
        if not isinstance(items, list):
            self._problem((key,), f"must be a list of passes, not {shown(items)}")
            return
        made = [self._pass(item, (key, place)) for place, item in enumerate(items)]
        self.fields[key] = tuple(one for one in made if one is not None)

    def _pass(self, item: Any, path: KeyPath) -> Pass | None:
        """The pass that an item of the list stands for; None if it is a mistake."""
        match item:
            case Pass():
                return item
            case str():
                return self._made(item, {}, path) if self._known(item, path) else None
            case Mapping() if item:
                return self._with_options(item, path)
        self._problem(path, f"must be the name of a pass, or name: options, not {shown(item)}")
        return None

    def _with_options(self, item: Mapping[Any, Any], path: KeyPath) -> Pass | None:
        name, *others = item
        if not self._known(name, (*path, name), of_key=True):
            return None
        for other in others:
            self._stray(other, name, path)
        options = item[name]
        if isinstance(options, Mapping) or (options is None and not others):
            return self._made(name, options or {}, (*path, name))
        if options is not None:
            self._problem((*path, name), f"must be a mapping of options, not {shown(options)}")
        return None

    def _known(self, name: Any, path: KeyPath, *, of_key: bool = False) -> bool:
        if name in PASSES:
            return True
        self._problem(
            path, f"no pass is named {shown(name)}{suggestion(name, PASSES)}", of_key=of_key
        )
        return False

    def _stray(self, key: Any, name: str, path: KeyPath) -> None:
        """A second key in an item: an option that is not indented, or a pass without a dash."""
        if key in _fields(PASSES[name]):
            what = f"is an option of {name}; indent it further than {name}"
        else:
            what = f"stands beside {name}; an item of the list is one pass, begun by a dash"
        self._problem((*path, key), what, of_key=True)

    def _made(self, name: str, options: Mapping[str, Any], path: KeyPath) -> Pass | None:
        kind = PASSES[name]
        try:
            # As JSON, so that lists become tuples under strict validation, and nothing else does.
            return TypeAdapter(kind).validate_json(json.dumps(dict(options)))
        except TypeError:
            self._problem(path, "its options must be text, numbers, booleans, lists or null")
        except ValidationError as error:
            self.problems += _problems(error, kind, path)
        return None


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The options of a pass, or of an option that holds several, by name."""
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    return fields


def shown(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggestion(word: Any, known: Iterable[Any]) -> str:
    """`; did you mean ...?` where a known word is near, or else all that are known."""
    words = [str(one) for one in known]
    spelled = str(word).casefold().replace("-", "_")
    near = difflib.get_close_matches(spelled, words, n=1)
    if near and isinstance(word, str):
        return f"; did you mean {near[0]}?"
    return f"; choose from {', '.join(words)}" if words else "; there are none"


def _problems(error: ValidationError, kind: type[Pass], path: KeyPath) -> Iterable[Problem]:
    """What pydantic found, in our words. Several alternatives that all fail are one mistake."""
    found: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _explained(detail, kind, path)
        earlier = found.get(problem.path)
        if earlier is not None:
            problem = dataclasses.replace(problem, what=f"{earlier.what}, or {problem.what}")
        found[problem.path] = problem
    return found.values()


def _explained(detail: Any, kind: type[Pass], path: KeyPath) -> Problem:
    steps, value = detail["loc"], detail["input"]
    match detail["type"]:
        case "unexpected_keyword_argument":
            place = _Place.of(kind, steps[:-1])
            hint = suggestion(steps[-1], place.fields)
            where = (*path, *place.path, steps[-1])
            return Problem(where, f"no such option{hint}", of_key=True)
        case "missing":
            inside = _Place.of(kind, steps[:-1]).path
            return Problem((*path, *inside), f"the option {steps[-1]} is missing")
    place = _Place.of(kind, steps)
    where = (*path, *place.path)
    match detail["type"]:
        case "literal_error":
            words = choices(place.annotation)
            return Problem(where, f"cannot be {shown(value)}{suggestion(value, words)}")
        case "value_error":
            return Problem(where, str(detail["ctx"]["error"]))
        case str(error_type) if error_type in _TYPES:
            return Problem(where, f"must be {_TYPES[error_type]}, not {shown(value)}")
    rule = detail["msg"].removeprefix("Input should ")
    return Problem(where, f"should {rule}; it is {shown(value)}")


class _Place(NamedTuple):
    """A place among the options of a pass, which may hold options of their own.

    Attributes:
        path: the keys and places in lists that lead there.
        fields: the options that may stand there, by name.
        annotation: the type of what stands there.
    """

    path: KeyPath
    fields: Mapping[str, FieldInfo]
    annotation: Any

    @classmethod
    def of(cls, kind: type[Pass], steps: Iterable[str | int]) -> _Place:
        """Where a location of pydantic leads.

        Alternatives of a union are named in it by their type; those are no keys.
        """
        place = cls((), _fields(kind), None)
        for step in steps:
            if isinstance(step, int):
                place = place._replace(path=(*place.path, step))
            elif step in place.fields:
                annotation = place.fields[step].annotation
                place = cls((*place.path, step), _inner(annotation), annotation)
        return place


def _inner(annotation: Any) -> Mapping[str, FieldInfo]:
    """The options that an option holds, on its own or as a list of several."""
    if hasattr(annotation, "__pydantic_fields__"):
        return _fields(annotation)
    found: dict[str, FieldInfo] = {}
    for argument in get_args(annotation):
        found |= _inner(argument)
    return found


_TYPES = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "tuple_type": "a list",
    "dataclass_type": "a mapping of options",
}
"""What a value must be, by the type of pydantic's error."""


def choices(annotation: Any) -> Iterator[str]:
    """The literal values that an annotation allows, as YAML spells them."""
    for argument in get_args(annotation):
        if argument is type(None):
            yield "null"
        elif get_args(argument):
            yield from choices(argument)
        elif not isinstance(argument, type):
            yield str(argument).lower() if isinstance(argument, bool) else str(argument)
