"""YAML as recipes use it: JSON's values, where each stands in the file, and nothing else.

Plain words mean what they do in YAML 1.2: `off` and `yes` are text, `1e-3` is a number. Keys
given twice, anchors, aliases and tags are mistakes. Nothing is constructed but numbers, text,
booleans, null, lists and mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
"""Where a value stands in a document: `("passes", 0, "cast", "dtype")`."""

_TAGGED = (yaml.ScalarEvent, yaml.CollectionStartEvent)

DEEPEST = 20
"""How many levels of lists and mappings a document may have."""


@dataclass(frozen=True, order=True)
class Mark:
    """A place in a file; both numbers begin at 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Problem:
    """A mistake.

    Attributes:
        path: what it is about.
        what: the mistake, and what would be right.
        of_key: whether it is the key that is wrong, not the value under it.
        mark: where it stands, if that is known better than from the path.
    """

    path: KeyPath
    what: str
    of_key: bool = False
    mark: Mark | None = None


@dataclass
class Document:
    """What a file holds.

    Attributes:
        value: of the whole file; None where it cannot be read.
        problems: what is wrong with it as YAML.
        values: where each value stands.
        keys: where the key of each value under a key stands.
    """

    value: Any = None
    problems: list[Problem] = field(default_factory=list)
    values: dict[KeyPath, Mark] = field(default_factory=dict)
    keys: dict[KeyPath, Mark] = field(default_factory=dict)

    def mark(self, problem: Problem) -> Mark:
        """Where a problem stands, or what is nearest above it."""
        if problem.mark is not None:
            return problem.mark
        path = problem.path
        if problem.of_key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Mark(1, 1))


class _Loader(yaml.SafeLoader):
    """Reads plain words by the core schema of YAML 1.2 (section 10.3.2)."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  (as its base declares it)


class _Dumper(yaml.SafeDumper):
    """Writes what both YAML 1.1 and 1.2 read as the same value, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write a value again wherever it occurs."""
        return True


_CORE = {
    "null": ("null|Null|NULL|~|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?[0-9]{1,4000}|0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,4000}", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_TAG = "tag:yaml.org,2002:"
for _kind, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first)
_Dumper.add_representer(
    tuple, lambda dumper, items: dumper.represent_sequence(f"{_TAG}seq", items, flow_style=True)
)


def dump(value: Any) -> str:
    """A value as YAML, keys in their order, tuples on one line."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)
    return text


def parse(text: str) -> Document:
    """Read a document, with every mistake in it that does not keep the rest from being read."""
    document = Document()
    try:
        document.problems += _forbidden(text)
        if not document.problems:
            root = yaml.compose(text, Loader=_Loader)
            if root is not None:
                document.value = _value(root, (), document)
    except yaml.reader.ReaderError as error:
        mark = _mark_at(text, error.position)
        document.problems.append(
            Problem((), f"not text that YAML allows: {error.reason}", mark=mark)
        )
    except yaml.MarkedYAMLError as error:
        mark = _mark(error.problem_mark or error.context_mark)
        what = ", ".join(filter(None, (error.context, error.problem)))
        document.problems.append(Problem((), f"not valid YAML: {what}", mark=mark))
    return document


def _forbidden(text: str) -> Iterator[Problem]:
    """Aliases, tags and depth: what makes a small file mean something large or foreign."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.AliasEvent):
            yield Problem((), f"an alias (*{event.anchor}); write it out", mark=mark)
        elif isinstance(event, _TAGGED) and event.tag is not None:
            yield Problem((), f"a tag ({event.tag}); recipes have none", mark=mark)
        if depth > DEEPEST:
            yield Problem((), f"more than {DEEPEST} levels deep", mark=mark)
            return


def _value(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    document.values[path] = _mark(node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, place), document) for place, item in enumerate(node.value)]
    return _mapping(node, path, document)


def _mapping(node: yaml.Node, path: KeyPath, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        mark = _mark(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(path, "a key must be a word", mark=mark))
            continue
        key = str(key_node.value)
        if key in result:
            first = document.keys[*path, key]
            what = f"given twice, first at line {first.line}"
            document.problems.append(Problem((*path, key), what, mark=mark))
            continue
        document.keys[*path, key] = mark
        result[key] = _value(value_node, (*path, key), document)
    return result


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _mark(mark: Any) -> Mark:
    """A place as PyYAML gives it, counted from 0, or the beginning for None."""
    return Mark(1, 1) if mark is None else Mark(mark.line + 1, mark.column + 1)


def _mark_at(text: str, position: int) -> Mark:
    before = text[:position]
    return Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
