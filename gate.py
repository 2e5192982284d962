"""Never slower: each kind of quantized layer is timed here, as it would run, beside its dense form.

Weights of few bits are read faster and multiplied slower, so what pays for one token at a time may
not pay for sixteen. Which it is depends on the processor, the shape and the format; it is measured.
A kind of layer whose kernel loses at one of the batch sizes asked for is lowered dense.
"""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import fx

from planish.ir.activations import ActivationScheme, fake_quantize
from planish.ir.errors import PlanishError
from planish.ir.program import Input, Program
from planish.ir.progress import Progress, silent
from planish.ir.quant import QuantizedTensor, dequantize
from planish.ir.shapes import propagate
from planish.ir.sizes import Size, SymbolicShapes
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import Target
from planish.runtime.ort_backend import OnnxBackend
from planish.runtime.timing import forward_round, in_turns

aten = torch.ops.aten

PREFILL = 256
"""Rows of a prompt: timed too and told, since prompts are read once and tokens made many times."""

TOLERANCE = 1.1
"""How much slower counts as slower: medians of an ordinary machine differ by as much."""

ROUNDS, ENOUGH = 7, 0.01
"""Rounds, in turns, of which the median counts, and the least seconds of each."""


UNTIMED = (
    "Layers were not timed: quantized ones that are slower than in floating point on your machine "
    "are in the ONNX model all the same. --gate 1 --gate 4 keeps these dense, planish bench tells."
)


class BadGate(PlanishError):
    """A gate that cannot be: its batch sizes are none, or nothing is lowered to ONNX."""


@dataclass(frozen=True)
class Timing:
    """One kind of quantized layers at one number of rows.

    Attributes:
        layers: the names of the weights of every such layer; those of one value run together.
        what: the kind, for people: shapes and formats.
        rows: tokens that are read at once.
        seconds: of one call, as quantized.
        dense: of one call of the same layers with weights in floating point.
    """

    layers: tuple[str, ...]
    what: str
    rows: int
    seconds: float
    dense: float

    @property
    def is_slower(self) -> bool:
        """Whether the quantized layers lose by more than chance."""
        return self.seconds > TOLERANCE * self.dense


def check_gate(batch_sizes: Sequence[int], target: str) -> None:
    """Refuse a gate that cannot be, before any work.

    Raises:
        BadGate: if a batch size is no positive number, or the target is another than `"onnx"`.
    """
    if any(size < 1 for size in batch_sizes):
        raise BadGate(f"gate: {list(batch_sizes)} are no batch sizes; give some such as 1, 4, 16.")
    if batch_sizes and target != "onnx":
        raise BadGate(
            f"gate: it times layers of ONNX models, and the target is {target}; leave one out."
        )


def time_layers(
    program: Program, target: Target, batch_sizes: Sequence[int], progress: Progress = silent
) -> list[Timing]:
    """Time each kind of quantized layer at each batch size, and for a prompt.

    Args:
        program: as it is about to be lowered.
        target: what for.
        batch_sizes: of decoding: rows that are multiplied at once.
        progress: told the kinds done, and how many there are.
    """
    kinds: dict[Hashable, list[list[fx.Node]]] = {}
    for group in _together(program):
        kinds.setdefault(_kind(program, group), []).append(group)
    found = []
    for done, groups in enumerate(kinds.values()):
        progress("time layers", done, len(kinds))
        names = tuple(name for group in groups for name in _names(program, group))
        rows = [*dict.fromkeys([*batch_sizes, PREFILL])]
        for count, seconds in zip(rows, _timed(program, groups[0], target, rows), strict=True):
            found.append(Timing(names, _described(program, groups[0]), count, *seconds))
    return found


def slower_weights(timings: Iterable[Timing], batch_sizes: Sequence[int]) -> frozenset[str]:
    """The weights that are to be lowered dense: their layers lose at one of the batch sizes."""
    slow = [one.layers for one in timings if one.is_slower and one.rows in batch_sizes]
    return frozenset(name for layers in slow for name in layers)


def untold(program: Program) -> tuple[str, ...]:
    """That no layer was timed, where one might be slower than in floating point."""
    return (UNTIMED,) if _together(program) else ()


def told(timings: Sequence[Timing], batch_sizes: Sequence[int]) -> tuple[str, ...]:
    """What stayed dense, and why; and what is slower on prompts all the same."""
    stays = slower_weights(timings, batch_sizes)
    said = []
    for one in timings:
        if not one.is_slower:
            continue
        how = f"{one.seconds * 1e6:.0f} µs for {one.rows} rows, dense {one.dense * 1e6:.0f} µs"
        if one.rows in batch_sizes:
            said.append(f"{one.what}, {len(one.layers)} weights: dense in the ONNX model; {how}.")
        elif not stays & set(one.layers):
            said.append(f"{one.what}, {len(one.layers)} weights: slower on prompts; {how}.")
    return tuple(said)


def _together(program: Program) -> list[list[fx.Node]]:
    """Products with quantized weights, those that read one value in one list."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in program.nodes(aten.linear.default):
        if node.args[1].target is dequantize:  # type: ignore[union-attr]
            groups.setdefault(node.args[0], []).append(node)
    return list(groups.values())


def _weights(program: Program, group: Sequence[fx.Node]) -> list[tuple[str, QuantizedTensor]]:
    return [QuantizedTensor.read_by(node.args[1], program.tensors) for node in group]  # type: ignore[arg-type]


def _names(program: Program, group: Sequence[fx.Node]) -> list[str]:
    return [name for name, _ in _weights(program, group)]


def _inputs(group: Sequence[fx.Node]) -> ActivationScheme | None:
    source: Any = group[0].args[0]
    return ActivationScheme.read_by(source) if source.target is fake_quantize else None


def _kind(program: Program, group: Sequence[fx.Node]) -> Hashable:
    """Equal for groups that take equally long."""
    weights = tuple((one.shape, one.scheme, one.dtype) for _, one in _weights(program, group))
    return weights, tuple(len(node.args) for node in group), _inputs(group)


def _described(program: Program, group: Sequence[fx.Node]) -> str:
    weights = [one for _, one in _weights(program, group)]
    columns = weights[0].shape[-1]
    rows = " + ".join(str(one.shape[0]) for one in weights)
    schemes = ", ".join(dict.fromkeys(str(one.scheme) for one in weights))
    inputs = _inputs(group)
    return f"{columns} to {rows} in {schemes}" + (f", inputs {inputs}" if inputs else "")


def _timed(
    program: Program, group: Sequence[fx.Node], target: Target, rows: Sequence[int]
) -> list[tuple[float, float]]:
    """Seconds of a call for each number of rows, as quantized and dense, timed in turns."""
    alone = _alone(program, group)
    (spec,) = alone.inputs
    with tempfile.TemporaryDirectory() as scratch:
        sides = []
        for place, kept in enumerate((frozenset[str](), frozenset(_names(program, group)))):
            folder = Path(scratch) / str(place)
            lower(alone, folder, replace(target, dense=kept))
            sides.append(OnnxBackend(folder / MODEL_FILE, "cpu"))
        dtype = np.dtype(sides[0].inputs[0].array_dtype)
        random = np.random.default_rng(0)
        found = []
        for count in rows:
            drawn = random.standard_normal((count, 1, int(spec.shape[-1])))
            feeds = {"x": drawn.astype(dtype)}
            rounds = [partial(forward_round, partial(side.run, feeds), ENOUGH) for side in sides]
            times = in_turns(rounds, ROUNDS, lambda: None)
            first, second = (median(one["forward"] for one in side) for side in times)
            found.append((first, second))
    return found


def _alone(program: Program, group: Sequence[fx.Node]) -> Program:
    """The layers of a group, and nothing else, as a program of their input [B, T, K]."""
    source: Any = group[0].args[0]
    root = source.args[0] if source.target is fake_quantize else source
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {root: graph.placeholder("x")}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            for read in node.all_input_nodes:
                copy(read)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    graph.output(tuple(copy(node) for node in group))
    read = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    value = root.meta["val"]
    alone = Program(
        graph,
        {name: program.tensors[name] for name in read},
        (Input("x", value.dtype, ("B", "T", int(value.shape[-1]))),),
        tuple(f"y{place}" for place in range(len(group))),
        SymbolicShapes((Size("B", 5), Size("T", 7))),
    )
    propagate(alone)
    return alone


def timings_json(timings: Iterable[Timing]) -> list[Mapping[str, Any]]:
    """The table of timings, as JSON values."""
    return [{**vars(one), "layers": list(one.layers)} for one in timings]
