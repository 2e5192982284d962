"""Whether random graphs keep requests apart: what the analysis says, and what runs show."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.flow.fx import read_program
from planish.ir.isolation.dependence import Dependence
from planish.ir.isolation.digits import rows
from planish.ir.isolation.interpret import Interpreter
from planish.ir.sizes import SpecializedSize, evaluate
from support.random_graphs import Move, RandomProgram, build, symbols
from support.random_lookups import LOOKUPS
from support.random_moves import MOVES
from support.refute import same

SIZES = ({"B": 3, "T": 5}, {"B": 4, "T": 2}, {"B": 3, "T": 3})
ALL: Sequence[Move] = [*MOVES, *LOOKUPS]


@dataclass
class Count:
    """What became of many programs: each output of a graph is one, with what it is made of."""

    graphs: int = 0
    programs: int = 0
    isolated: int = 0
    confirmed: int = 0
    unconfirmed: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.programs} programs in {self.graphs} graphs, "
            f"{self.isolated} isolated, leaks: {self.confirmed} "
            f"confirmed, {self.unconfirmed} unconfirmed; wrong: {len(self.wrong)}"
        )


def programs(seed: int, number: int, careful: float = 0.3) -> Iterator[tuple[int, RandomProgram]]:
    """As many random programs, each by a seed of its own."""
    shapes = symbols()
    for one in range(seed, seed + number):
        chance = random.Random(one)
        if one % 40 == 0:
            shapes = symbols()
        try:
            made = build(chance, shapes, ALL, careful)
        except SpecializedSize:
            shapes = symbols()
            continue
        if made.outputs:
            yield one, made


def isolated(made: RandomProgram) -> list[bool]:
    """Of which outputs the analysis proves that each row reads its own request."""
    flow = read_program(made.program)
    given = {value: Dependence() for value in flow.inputs}
    for value, spec in zip(flow.inputs, made.program.inputs, strict=True):
        if spec.batch_axis is not None:
            own = rows(spec.batch_axis, value.shape[spec.batch_axis])
            given[value] = Dependence(frozenset({own}))
    interpreter = Interpreter(given)
    interpreter.run(flow)
    verdicts = []
    for output, axis in zip(flow.outputs.values(), made.outputs.values(), strict=True):
        found = interpreter.dependences[output]
        verdicts.append(not found.causes and found.maps <= {rows(axis, output.shape[axis])})
    return verdicts


def evaluated(made: RandomProgram, given: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, the batch first, with the same random numbers each time."""
    torch.default_generator.manual_seed(0)
    values: dict[fx.Node, Any] = {}
    rest = iter(given)
    for node in made.program.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(rest)
        elif node.op == "get_attr":
            values[node] = made.program.tensors[str(node.target)]
        elif node.op == "call_function":
            args = [_resolved(one, values) for one in node.args]
            kwargs = {name: _resolved(one, values) for name, one in node.kwargs.items()}
            values[node] = node.target(*args, **kwargs)
    return [values[node].movedim(axis, 0) for node, axis in made.outputs.items()]


def _resolved(argument: Any, values: dict[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, list | tuple):
        return [_resolved(one, values) for one in argument]
    return argument


def inputs(made: RandomProgram, sizes: dict[str, Any], chance: torch.Generator) -> list[Tensor]:
    """Random inputs; integers are 0 or 1."""
    return [
        _random(spec.dtype, [evaluate(extent, sizes) for extent in spec.shape], chance)
        for spec in made.program.inputs
    ]


def _random(dtype: torch.dtype, shape: list[int], chance: torch.Generator) -> Tensor:
    if dtype == torch.float32:
        return torch.randn(shape, generator=chance)
    return torch.randint(2, shape, generator=chance).to(dtype)


KINDS = ("fresh", "x100", "x10000", "nan", "inf", "zero")


def flows_seen(made: RandomProgram) -> list[str] | None:
    """How a row of each output changed when only other requests were replaced: "" if none did.

    None if the program needs more elements than any of the sizes have.
    """
    seen = [""] * len(made.outputs)
    ran = False
    for sizes in SIZES:
        chance = torch.Generator().manual_seed(1)
        given = inputs(made, dict(sizes), chance)
        try:
            before = evaluated(made, given)
        except (RuntimeError, IndexError):
            continue
        ran = True
        for row in range(sizes["B"]):
            keep = torch.arange(sizes["B"]) == row
            for kind in KINDS:
                axes = [spec.batch_axis for spec in made.program.inputs]
                changed = [
                    one if axis is None else _changed(one, axis, keep, kind, chance)
                    for one, axis in zip(given, axes, strict=True)
                ]
                after = evaluated(made, changed)
                for number, (old, new) in enumerate(zip(before, after, strict=True)):
                    if seen[number]:
                        continue
                    if old.shape != new.shape or not same(
                        old[row], new[row], torch.ones_like(old[row], dtype=torch.bool)
                    ):
                        seen[number] = f"row {row} changes ({kind}, {sizes})"
    return seen if ran else None


def _changed(x: Tensor, axis: int, keep: Tensor, kind: str, chance: torch.Generator) -> Tensor:
    mask = keep.view([-1 if dim == axis else 1 for dim in range(x.dim())])
    other = _random(x.dtype, list(x.shape), chance)
    if x.dtype == torch.float32 and kind != "fresh":
        scale = {"x100": 100.0, "x10000": 1e4, "zero": 0.0}.get(kind)
        other = torch.full_like(x, float(kind)) if scale is None else other * scale
    return torch.where(mask, x, other)


def fuzz(seed: int, number: int) -> Count:
    """Compare verdicts with runs, for the programs of as many graphs."""
    count = Count()
    for one, made in programs(seed, number):
        seen = flows_seen(made)
        if seen is None:
            continue
        count.graphs += 1
        nodes = iter(made.outputs)
        for apart, flow in zip(isolated(made), seen, strict=True):
            node = next(nodes)
            count.programs += 1
            count.isolated += apart
            if apart and flow:
                count.wrong.append(
                    f"seed {one}: {node.name} is called isolated, but {flow}\n{made.program.graph}"
                )
            elif not apart:
                count.confirmed += bool(flow)
                count.unconfirmed += not flow
    return count
