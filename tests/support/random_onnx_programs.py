"""Random ONNX graphs as models that can be analysed and run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import analyse_onnx
from planish.ir.isolation.verdict import Verdict
from planish.ir.sizes import Extent
from support.fuzz import Array, NotRun, Result, Spec, some_inputs
from support.onnx_oracle import runner
from support.random_onnx import DTYPES, TYPES, B, Builder, Held, Move, entered, is_float
from support.random_onnx_lookups import LOOKUPS
from support.random_onnx_moves import PLACES
from support.random_onnx_nested import NESTED, opsets
from support.random_onnx_sums import SUMS

ALL: Sequence[Move] = [*PLACES, *LOOKUPS, *SUMS, *NESTED, *NESTED]
VERSIONS = (11, 13, 17, 18, 21, 23)


@dataclass(frozen=True)
class RandomModel:
    """A model whose outputs each have the batch along a dimension.

    Attributes:
        builder: what made it.
        inputs: what it is given.
        outputs: with the batch along some dimension.
        tied: whether all inputs name the batch alike; else that they are equal is assumed.
    """

    builder: Builder
    inputs: tuple[Spec, ...]
    outputs: tuple[Held, ...]
    tied: bool

    def __str__(self) -> str:
        return onnx.printer.to_text(self.model)

    @property
    def results(self) -> tuple[Result, ...]:
        last = self.outputs[-1]
        return tuple(Result(one.name, one.dims.index(B), one is last) for one in self.outputs)

    @property
    def operators(self) -> frozenset[str]:
        return frozenset(_operators(self.model.graph.node)) | {
            name for function in self.model.functions for name in _operators(function.node)
        }

    @cached_property
    def model(self) -> onnx.ModelProto:
        builder = self.builder
        graph = helper.make_graph(
            builder.nodes,
            "random",
            [self._input(spec) for spec in self.inputs],
            [onnx.ValueInfoProto(name=one.name) for one in self.outputs],
            [numpy_helper.from_array(one, name) for name, one in builder.stored.items()],
        )
        imports = [helper.make_opsetid(*one) for one in opsets(builder.version).items()]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=10, functions=builder.functions
        )

    def _input(self, spec: Spec) -> onnx.ValueInfoProto:
        def named(size: Extent) -> Extent:
            return f"B of {spec.name}" if size == "B" and not self.tied else size

        shape = [named(size) for size in spec.shape]
        return helper.make_tensor_value_info(spec.name, TYPES[DTYPES[spec.dtype]], shape)

    def verdicts(self) -> list[Verdict]:
        labels = Labels(
            {spec.name: spec.axis for spec in self.inputs if spec.axis is not None},
            {one.name: one.axis for one in self.results if one.axis is not None},
            tuple(spec.name for spec in self.inputs if spec.axis is None),
        )
        found: dict[str, Verdict] = {
            one.name: one.verdict for one in analyse_onnx(self.model, labels).outputs
        }
        return [found[one.name] for one in self.results]

    @cached_property
    def _runner(self) -> Callable[[dict[str, Any]], list[Any]]:
        return runner(self.model)

    def run(self, given: Sequence[Array]) -> list[Array]:
        feeds = {spec.name: one for spec, one in zip(self.inputs, given, strict=True)}
        try:
            with np.errstate(all="ignore"):
                return self._runner(feeds)
        except Exception as problem:  # each runtime has errors of its own
            raise NotRun(str(problem)) from problem


def _operators(nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for attribute in node.attribute:
            yield from _operators(attribute.g.node)


def drawn(chance: random.Random, moves: Sequence[Move], careful: float) -> RandomModel:
    """A model of 4 to 14 moves, each of whose results with the batch is an output."""
    builder = Builder(chance, chance.random() < careful, chance.choice(VERSIONS))
    specs = some_inputs(chance)
    entered(builder, specs)
    wanted = chance.randint(4, 14)
    last = builder.values[0]
    outputs: list[Held] = []
    for _ in range(3 * wanted):
        start = last if chance.random() < 0.75 else chance.choice(builder.values)
        made = builder.tried(moves, start) if is_float(start) else None
        if made is None:
            continue
        builder.values.append(made)
        last = made
        if B in made.dims:
            outputs.append(made)
        wanted -= 1
        if not wanted:
            break
    return RandomModel(builder, tuple(specs), tuple(outputs), chance.random() < 0.7)


def programs(
    seed: int, careful: float = 0.3, moves: Sequence[Move] = ALL
) -> Iterator[tuple[str, RandomModel]]:
    """Random models without end, each by a seed of its own."""
    for one in count(seed):
        made = drawn(random.Random(one), moves, careful)
        if made.outputs:
            yield f"seed {one}", made
