"""Strict checks of ONNX files before they are read.

A file that two programs understand differently can be shown harmless to one and run harmful by the
other. ONNX's own checker lets several such files pass; these checks refuse them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, defs

from planish.ir.flow.lint_tensor import check_tensor
from planish.ir.flow.malformed import AmbiguousGraph, AmbiguousTensor, NotOnnx, UnknownFormat

OLDEST_IR = 3
NEWEST_IR = int(onnx.IR_VERSION)
"""Of the file format, as the installed onnx knows it."""

DEEPEST = 32
"""How many graphs may lie in one another."""


def load(path: Path) -> onnx.ModelProto:
    """Read a model without its external data, and check it.

    Raises:
        Malformed: if anything is wrong with it; the message names it.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise NotOnnx(f"{path} cannot be read: {problem.strerror}. Give the path of a file.") from (
            problem
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as problem:  # protobuf's own, whose package onnx brings along
        raise NotOnnx(
            f"{path} is not an ONNX model: its content is no such protobuf. Give a file that "
            "was exported as ONNX, and check that it was copied whole."
        ) from problem
    del content  # up to 2 GiB, which the model holds by now
    check(model, path.parent)
    return model


def check(model: onnx.ModelProto, folder: Path | None = None) -> None:
    """Check a model.

    Args:
        model: without its external data.
        folder: where its external data lie; None leaves out whether they are there.

    Raises:
        Malformed: if anything is wrong with it; the message names it.
    """
    if not model.HasField("graph") or not model.ir_version:
        raise NotOnnx(
            "This is not an ONNX model: it states no format version and no graph. Give a file "
            "that was exported as ONNX."
        )
    if not OLDEST_IR <= model.ir_version <= NEWEST_IR:
        raise UnknownFormat(
            f"The model is written in version {model.ir_version} of the ONNX format; versions "
            f"{OLDEST_IR} to {NEWEST_IR} are known. Export it again with such a version, or "
            "install a newer onnx package."
        )
    _check_texts(model)
    _check_opsets(model)
    _check_functions(model)
    _check_graph(model.graph, set(), folder, 0, "the graph")


def _check_texts(message: Any) -> None:
    """Names are proper text; protobuf hands over anything else as bytes."""
    for field, content in message.ListFields():
        several = content if field.is_repeated else [content]
        if field.type == field.TYPE_STRING and not all(isinstance(one, str) for one in several):
            raise NotOnnx(
                f"The model's field {field.full_name} is no proper text. The file is damaged: "
                "copy it again."
            )
        if field.type == field.TYPE_MESSAGE:
            for one in several:
                _check_texts(one)


def _check_opsets(model: onnx.ModelProto) -> None:
    if not model.opset_import:
        raise UnknownFormat(
            "The model states no version of its operators. Export it again with opset imports."
        )
    for imports, place in (
        (model.opset_import, "The model"),
        *((one.opset_import, f"Function {one.name}") for one in model.functions),
    ):
        domains = ["" if one.domain == "ai.onnx" else one.domain for one in imports]
        for domain in domains:
            if domains.count(domain) > 1:
                raise UnknownFormat(
                    f"{place} states the version of domain {domain or 'ai.onnx'} more than once. "
                    "Export it again with one version for each domain."
                )


def _check_functions(model: onnx.ModelProto) -> None:
    seen: set[tuple[str, str, str]] = set()
    for function in model.functions:
        domain = "" if function.domain == "ai.onnx" else function.domain
        key = (domain, function.name, function.overload)
        if key in seen:
            raise AmbiguousGraph(
                f"Function {function.name} of domain {domain or 'ai.onnx'} is defined twice. Keep "
                "one definition."
            )
        seen.add(key)
        if domain in ("", "ai.onnx.ml") and defs.has(function.name, domain):
            raise AmbiguousGraph(
                f"The model defines its own {function.name} in ONNX's domain, where runtimes may "
                "run the standard operator instead. Give the function a domain of its own."
            )
        where = f"function {function.name}"
        names = _unique(list(function.input), "an input", where)
        _check_attributes(function.attribute_proto, set(), None, 0, where)
        _check_nodes(function.node, set(names), set(), None, 0, where)
        defined = set(names).union(*(one.output for one in function.node))
        _check_outputs(function.output, defined, where)


def _unique(names: Iterator[str] | list[str], what: str, where: str) -> list[str]:
    found: list[str] = []
    for name in names:
        if not name or name in found:
            raise AmbiguousGraph(
                f"In {where}, {what} has no name of its own ({name!r}). Give each a different name."
            )
        found.append(name)
    return found


def _check_graph(
    graph: GraphProto, outer: set[str], folder: Path | None, depth: int, where: str
) -> None:
    if depth > DEEPEST:
        raise AmbiguousGraph(
            f"More than {DEEPEST} graphs lie in one another in {where}. Export the model with "
            "less nesting."
        )
    inputs = _unique([one.name for one in graph.input], "an input", where)
    sparse = [one.values.name for one in graph.sparse_initializer]
    stored = _unique([*(one.name for one in graph.initializer), *sparse], "a stored tensor", where)
    for name in {*inputs, *stored} & outer:
        raise AmbiguousGraph(
            f"{name!r} of {where} has the name of a value outside. Rename one of them."
        )
    for tensor in graph.initializer:
        check_tensor(tensor, folder, where)
    for one in graph.sparse_initializer:
        check_tensor(one.values, folder, where)
        check_tensor(one.indices, folder, where)
    own = {*inputs, *stored}
    _check_nodes(graph.node, own, outer, folder, depth, where)
    defined = own.union(*(one.output for one in graph.node))
    _check_outputs([one.name for one in graph.output], defined | outer, where)


def _check_outputs(names: object, defined: set[str], where: str) -> None:
    for name in names:  # type: ignore[attr-defined]
        if name not in defined:
            raise AmbiguousGraph(
                f"Output {name!r} of {where} is defined nowhere. Export the model again."
            )


def _check_nodes(
    nodes: object, own: set[str], outer: set[str], folder: Path | None, depth: int, where: str
) -> None:
    """Each name is defined once, before it is used."""
    defined = set(own)
    for node in nodes:  # type: ignore[attr-defined]
        for name in node.input:
            if name and name not in defined and name not in outer:
                raise AmbiguousGraph(
                    f"Node {_named(node)} of {where} reads {name!r}, which nothing before it "
                    "defines: the graph is not sorted, has a cycle, or lacks a part. Sort its "
                    "nodes or export it again."
                )
        place = f"node {_named(node)} of {where}"
        if node.op_type == "Einsum":
            _check_equation(node, place)
        _check_attributes(node.attribute, defined | outer, folder, depth, place)
        for name in filter(None, node.output):
            if name in defined or name in outer:
                raise AmbiguousGraph(
                    f"Node {_named(node)} of {where} defines {name!r}, which is defined already. "
                    "Give each value a name of its own."
                )
            defined.add(name)


def _check_equation(node: NodeProto, where: str) -> None:
    """An equation is made of letters: others hang ONNX Runtime 1.32 when it infers shapes."""
    equations = (one.s for one in node.attribute if one.name == "equation")
    for equation in equations:
        if not _EQUATION.fullmatch(equation.replace(b" ", b"")):
            raise AmbiguousGraph(
                f"The equation {equation!r} of {where} is none: it takes letters, a term for each "
                "input, such as 'ab,bc->ac'. Export the model again."
            )


_TERM = rb"[A-Za-z]*(?:\.\.\.[A-Za-z]*)?"
_EQUATION = re.compile(rb"%b(?:,%b)*(?:->%b)?" % (_TERM, _TERM, _TERM))


def _check_attributes(
    attributes: Sequence[AttributeProto],
    visible: set[str],
    folder: Path | None,
    depth: int,
    where: str,
) -> None:
    names = [attribute.name for attribute in attributes]
    if len(set(names)) != len(names):
        raise AmbiguousGraph(f"There is an attribute twice in {where}. Keep one of them.")
    for attribute in attributes:
        filled = [one for one in _FIELDS if _is_filled(attribute, one)]
        if len(filled) > 1 or (attribute.ref_attr_name and filled):
            raise AmbiguousTensor(
                f"Attribute {attribute.name} of {where} holds several values at once "
                f"({', '.join(filled)}). Keep the one that its type names."
            )
        stated = [field for field, kind in _FIELDS.items() if kind == attribute.type]
        if (not stated or filled not in ([], stated)) and not attribute.ref_attr_name:
            raise AmbiguousTensor(
                f"Attribute {attribute.name} of {where} holds no value of the type that it "
                "states, and readers disagree on which counts. Export it again."
            )
        for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
            check_tensor(tensor, folder, where)
        graphs = (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))
        for graph in graphs:
            _check_graph(graph, visible, folder, depth + 1, f"{attribute.name} of {where}")


_FIELDS = {
    "f": AttributeProto.FLOAT,
    "i": AttributeProto.INT,
    "s": AttributeProto.STRING,
    "t": AttributeProto.TENSOR,
    "g": AttributeProto.GRAPH,
    "sparse_tensor": AttributeProto.SPARSE_TENSOR,
    "tp": AttributeProto.TYPE_PROTO,
    "floats": AttributeProto.FLOATS,
    "ints": AttributeProto.INTS,
    "strings": AttributeProto.STRINGS,
    "tensors": AttributeProto.TENSORS,
    "graphs": AttributeProto.GRAPHS,
    "sparse_tensors": AttributeProto.SPARSE_TENSORS,
    "type_protos": AttributeProto.TYPE_PROTOS,
}
"""Of an attribute's value, by the field that holds it: the type that has to be stated."""


def _is_filled(attribute: onnx.AttributeProto, field: str) -> bool:
    descriptor = attribute.DESCRIPTOR.fields_by_name[field]
    if descriptor.is_repeated:
        return len(getattr(attribute, field)) > 0
    return bool(attribute.HasField(field))


def _named(node: NodeProto) -> str:
    return f"{node.name or next(iter(node.output), '')} ({node.op_type})"
