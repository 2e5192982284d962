"""Programs on disk: the graph as JSON, the tensors as safetensors; no pickle, no code.

`torch.export.load` falls back to unpickling when a file is not what it expects, so it is of no
use for files that others made. Here a file can name only operators of `NAMESPACES` and arithmetic
on sizes; anything else is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx

from planish.ir import activations, ops, quant, stack
from planish.ir.errors import PlanishError
from planish.ir.program import IllFormed, Input, Program, Source
from planish.ir.shapes import NAMESPACES, SYMBOLIC_FUNCTIONS, propagate, well_formed
from planish.ir.sizes import Size, SymbolicShapes
from planish.ir.text import target_text

FORMAT = 1

OPERATORS = (ops.rms_norm, quant.dequantize, activations.fake_quantize, stack.sign_stack)
"""Naming them imports the modules that define the operators a file may call."""

GRAPH_FILE = "program.json"
TENSOR_FILE = "tensors.safetensors"


class MalformedProgram(PlanishError):
    """The files of a saved program are damaged, or hold what a program may not."""


def save(program: Program, folder: Path) -> None:
    """Write a program's two files. The same program gives the same bytes. Samples stay behind."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(graph_json(program), indent=1, ensure_ascii=False)
    (folder / GRAPH_FILE).write_text(text + "\n", encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in program.tensors.items()},
        folder / TENSOR_FILE,
    )


def graph_json(program: Program) -> dict[str, Any]:
    """Everything of a program but its tensors and samples, as JSON values."""
    source = program.source
    return {
        "format": FORMAT,
        "sizes": [dataclasses.astuple(size) for size in program.sizes],
        "inputs": [
            [spec.name, _dtype_name(spec.dtype), list(spec.shape), spec.batch_axis]
            for spec in program.inputs
        ],
        "outputs": list(program.outputs),
        "aliases": dict(program.aliases),
        "source": {
            "kind": source.kind,
            "name": source.name,
            "task": source.task,
            "config": dict(source.config),
        },
        "nodes": [_node_json(node) for node in program.graph.nodes if node.op != "placeholder"],
    }


def _node_json(node: fx.Node) -> dict[str, Any]:
    if node.op == "get_attr":
        return {"name": node.name, "tensor": node.target}
    if node.op == "output":
        return {"return": _encode(node.args[0])}
    call = {
        "name": node.name,
        "call": target_text(node.target),
        "args": _encode(node.args),
        "kwargs": {key: _encode(value) for key, value in node.kwargs.items()},
        "module": node.meta.get("module"),
    }
    return {key: value for key, value in call.items() if value not in ({}, None)}


_CONSTANTS = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
"""Arguments that are attributes of `torch`, by the key they are written under."""


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _encode(value: Any) -> Any:
    match value:
        case fx.Node():
            return {"node": value.name}
        case list() | tuple():
            return [_encode(part) for part in value]
        case torch.device():
            return {"device": str(value)}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
    for key, kind in _CONSTANTS.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    raise TypeError(f"an argument of a program cannot be {value!r}")


def load(folder: Path) -> Program:
    """Read what `save` wrote, checking every name in it.

    Raises:
        MalformedProgram: naming the file and what is wrong with it.
    """
    path = folder / GRAPH_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSOR_FILE)
        return _program(document, tensors)
    except FileNotFoundError as error:
        raise MalformedProgram(f"{error.filename}: no such file; is {folder} a program?") from None
    except SafetensorError as error:
        raise MalformedProgram(f"{folder / TENSOR_FILE}: damaged or cut short ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IllFormed) as error:
        raise MalformedProgram(f"{path}: not a program that this version reads: {error}") from error


def _program(document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Program:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
    inputs = tuple(
        Input(name, _constant("dtype", dtype), tuple(shape), axis)
        for name, dtype, shape, axis in document["inputs"]
    )
    program = Program(
        graph=_graph(document["nodes"], inputs),
        tensors=tensors,
        inputs=inputs,
        outputs=tuple(document["outputs"]),
        shapes=SymbolicShapes(Size(*fields) for fields in document["sizes"]),
        source=Source(**document["source"]),
        aliases=document["aliases"],
    )
    well_formed(program)
    propagate(program)
    return program


def _graph(entries: list[dict[str, Any]], inputs: tuple[Input, ...]) -> fx.Graph:
    graph = fx.Graph()
    placeholders = [graph.placeholder(spec.name) for spec in inputs]
    nodes = {node.name: node for node in placeholders}
    for entry in entries:
        if "return" in entry:
            graph.output(tuple(_decode(entry["return"], nodes)))
            continue
        if "tensor" in entry:
            node = graph.create_node("get_attr", entry["tensor"], name=entry["name"])
        else:
            node = graph.create_node(
                "call_function",
                _target(entry["call"]),
                tuple(_decode(entry["args"], nodes)),
                {key: _decode(value, nodes) for key, value in entry.get("kwargs", {}).items()},
                name=entry["name"],
            )
            if "module" in entry:
                node.meta["module"] = entry["module"]
        nodes[entry["name"]] = node
    return graph


def _target(name: str) -> Callable[..., Any]:
    if name in SYMBOLIC_FUNCTIONS:
        return SYMBOLIC_FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace not in NAMESPACES:
        raise ValueError(f"{name} is not an operator that a program may call")
    target = getattr(getattr(torch.ops, namespace), packet)
    resolved: Callable[..., Any] = getattr(target, overload or "default")
    return resolved


def _constant(key: str, name: str) -> Any:
    value = getattr(torch, name, None)
    if not isinstance(value, _CONSTANTS[key]):
        raise ValueError(f"{name!r} is no {key}")
    return value


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    match value:
        case list():
            return [_decode(part, nodes) for part in value]
        case {"node": str(name)}:
            return nodes[name]
        case {"device": str(name)}:
            return torch.device(name)
        case {"float": str(number)}:
            return float(number)
        case dict():
            ((key, name),) = value.items()
            return _constant(key, name)
    return value
