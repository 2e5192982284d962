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
    """A model whose outputs each have the batch along a dimension."""

    model: onnx.ModelProto
    inputs: tuple[Spec, ...]
    results: tuple[Result, ...]

    def __str__(self) -> str:
        return onnx.printer.to_text(self.model)

    @property
    def operators(self) -> frozenset[str]:
        return frozenset(_operators(self.model.graph.node)) | {
            name for function in self.model.functions for name in _operators(function.node)
        }

    @property
    def labels(self) -> Labels:
        """Whose the rows of inputs and outputs are."""
        return Labels(
            {spec.name: spec.axis for spec in self.inputs if spec.axis is not None},
            {one.name: one.axis for one in self.results if one.axis is not None},
            tuple(spec.name for spec in self.inputs if spec.axis is None),
        )

    def verdicts(self) -> list[Verdict]:
        analysis = analyse_onnx(self.model, self.labels)
        found: dict[str, Verdict] = {one.name: one.verdict for one in analysis.outputs}
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
    results = [Result(one.name, one.dims.index(B), one is outputs[-1]) for one in outputs]
    model = _model(builder, specs, outputs, tied=chance.random() < 0.7)
    return RandomModel(model, tuple(specs), tuple(results))


def _model(
    builder: Builder, specs: Sequence[Spec], outputs: Sequence[Held], tied: bool
) -> onnx.ModelProto:
    """What was built; unless `tied`, each input has a name of its own for the batch."""

    def input_of(spec: Spec) -> onnx.ValueInfoProto:
        own: dict[Extent, Extent] = {} if tied else {"B": f"B of {spec.name}"}
        shape = [own.get(size, size) for size in spec.shape]
        return helper.make_tensor_value_info(spec.name, TYPES[DTYPES[spec.dtype]], shape)

    graph = helper.make_graph(
        builder.nodes,
        "random",
        [input_of(spec) for spec in specs],
        [
            helper.make_tensor_value_info(one.name, TYPES[one.dtype], [None] * one.rank)
            for one in outputs
        ],
        [numpy_helper.from_array(one, name) for name, one in builder.stored.items()],
    )
    imports = [helper.make_opsetid(*one) for one in opsets(builder.version).items()]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=10, functions=builder.functions
    )


def programs(
    seed: int, careful: float = 0.3, moves: Sequence[Move] = ALL
) -> Iterator[tuple[str, RandomModel]]:
    """Random models without end, each by a seed of its own."""
    for one in count(seed):
        made = drawn(random.Random(one), moves, careful)
        if made.results:
            yield f"seed {one}", made
