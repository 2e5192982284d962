"""Random ATen graphs as programs that can be analysed and run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import analyse_program
from planish.ir.isolation.verdict import Analysis, Verdict
from planish.ir.program import Input, Program
from planish.ir.sizes import SpecializedSize
from support.fuzz import Array, NotRun, Result, Spec
from support.random_graphs import DTYPES, Builder, Move, drawn, symbols
from support.random_lookups import LOOKUPS
from support.random_moves import MOVES
from support.random_nested import NESTED

ALL: Sequence[Move] = [*MOVES, *LOOKUPS, *NESTED]


@dataclass(frozen=True)
class RandomProgram:
    """A graph whose outputs each have the batch along a dimension: by node, which.

    It is read as a `Program`, or as an `ExportedProgram` if it has what only these have: nested
    graphs, and buffers and inputs that it writes.
    """

    builder: Builder
    outputs: Mapping[fx.Node, int]
    exported: bool = False

    def __str__(self) -> str:
        nested = [f"{name}: {one.graph}" for name, one in self.builder.graphs.items()]
        return "\n".join([str(self.builder.graph), *nested])

    @property
    def inputs(self) -> Sequence[Spec]:
        return self.builder.inputs

    @property
    def results(self) -> tuple[Result, ...]:
        last = list(self.outputs)[-1:]
        steps = [Result(one.name, axis, one in last) for one, axis in self.outputs.items()]
        axes = {spec.name: spec.axis for spec in self.inputs}
        states = [Result(f"state {name}", axes.get(name), True) for name in self.builder.written]
        return (*steps, *states)

    @property
    def operators(self) -> frozenset[str]:
        graphs = [self.builder.graph, *(one.graph for one in self.builder.graphs.values())]
        return frozenset(
            str(node.target)
            for graph in graphs
            for node in graph.nodes
            if node.op == "call_function"
        )

    def verdicts(self) -> list[Verdict]:
        labels = Labels(
            {spec.name: spec.axis for spec in self.inputs if spec.axis is not None},
            {node.name: axis for node, axis in self.outputs.items()},
            tuple(spec.name for spec in self.inputs if spec.axis is None),
        )
        found: dict[str, Verdict] = {
            one.name: one.verdict for one in self._analysis(labels).outputs
        }
        return [found[one.name] for one in self.results]

    def _analysis(self, labels: Labels) -> Analysis:
        if self.exported:
            return analyse(lambda ties: read_exported(self.export, ties), labels)
        return analyse_program(self.program, labels)

    @cached_property
    def export(self) -> ExportedProgram:
        """The graph as an `ExportedProgram`."""
        return _exported(self.builder, list(self.outputs))

    @cached_property
    def program(self) -> Program:
        """The graph as a `Program`."""
        self.builder.graph.output(tuple(self.outputs))
        inputs = [Input(one.name, DTYPES[one.dtype], one.shape, one.axis) for one in self.inputs]
        names = tuple(node.name for node in self.outputs)
        graph, tensors = self.builder.graph, self.builder.tensors
        return Program(graph, tensors, tuple(inputs), names, self.builder.shapes)

    def run(self, given: Sequence[Array]) -> list[Array]:
        tensors = [torch.from_numpy(one.copy()) for one in given]
        try:
            values = _evaluated(self.builder, tensors)
        except (RuntimeError, IndexError) as problem:
            raise NotRun(str(problem)) from problem
        results = [*self.outputs, *self.builder.written.values()]
        return [values[node].detach().numpy() for node in results]


def _evaluated(builder: Builder, given: Sequence[Tensor]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}
    held: dict[str, Any] = {**builder.tensors, **builder.graphs}
    held |= {spec.name: one for spec, one in zip(builder.inputs, given, strict=True)}
    for node in builder.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            values[node] = held[str(node.target)]
        elif node.op == "call_function":
            # How many numbers a branch draws would else decide what is drawn after it.
            torch.default_generator.manual_seed(0)
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return values


def _exported(builder: Builder, outputs: Sequence[fx.Node]) -> ExportedProgram:
    """The graph as `torch.export` gives it: what it reads and writes are inputs and outputs."""
    graph = builder.graph
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.target in builder.tensors:
            with graph.inserting_before(first):
                lifted = graph.placeholder(str(node.target))
            lifted.meta = node.meta
            node.replace_all_uses_with(lifted)
            graph.erase_node(node)
    written = builder.written
    graph.output((*written.values(), *outputs))
    state = builder.tensors
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = [_input(node, stored=node.target in state) for node in placeholders]
    results = [
        OutputSpec(
            OutputKind.BUFFER_MUTATION if name in state else OutputKind.USER_INPUT_MUTATION,
            TensorArgument(node.name),
            name,
        )
        for name, node in written.items()
    ]
    results += [
        OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(one.name), None) for one in outputs
    ]
    graph.eliminate_dead_code()
    return ExportedProgram(
        fx.GraphModule(dict(builder.graphs), graph),
        graph,
        ExportGraphSignature(inputs, results),
        dict(state),
        {},
        [ModuleCallEntry("")],
    )


def _input(node: fx.Node, stored: bool) -> InputSpec:
    argument = TensorArgument(node.name)
    if stored:
        return InputSpec(InputKind.BUFFER, argument, str(node.target), persistent=True)
    return InputSpec(InputKind.USER_INPUT, argument, None)


def programs(
    seed: int, careful: float = 0.3, moves: Sequence[Move] = ALL
) -> Iterator[tuple[str, RandomProgram]]:
    """Random programs without end, each by a seed of its own."""
    shapes = symbols()
    for one in count(seed):
        chance = random.Random(one)
        if one % 40 == 0:
            shapes = symbols()  # of every size that was met, it knows more than a graph should
        try:
            builder, outputs = drawn(chance, shapes, moves, careful)
        except SpecializedSize:
            shapes = symbols()
            continue
        if outputs:
            more = bool(builder.graphs or builder.written) or chance.random() < 0.2
            yield f"seed {one}", RandomProgram(builder, outputs, more)
