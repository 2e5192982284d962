"""Tries to prove a rule wrong: changes what a result is said not to read, and compares bits.

A call of one operator becomes a graph of one node. Its inputs are labelled with maps, each
element with a request. Whatever the rule says of the result is then checked with the real
operator: when every other request is replaced, an element may not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from planish.ir.flow.fx import read_program
from planish.ir.flow.graph import Flow
from planish.ir.isolation.dependence import Dependence
from planish.ir.isolation.digits import Digit, Map, make, rows
from planish.ir.isolation.interpret import Interpreter
from planish.ir.program import Input, Program
from planish.ir.shapes import propagate
from planish.ir.sizes import SymbolicShapes


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of the model: the same for every request, and its numbers may be known."""

    tensor: Tensor


@dataclass(frozen=True)
class Sample:
    """One call of an operator. A tensor that occurs twice is one input that is used twice."""

    operator: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of one call.

    Attributes:
        wrong: what contradicts the rule; empty if nothing does.
        labelled: in how many ways its inputs were labelled.
        apart: for how many of these the rule says that requests stay apart.
        compared: how many results of the real operator were compared.
    """

    wrong: list[str] = field(default_factory=list)
    labelled: int = 0
    apart: int = 0
    compared: int = 0


@cache
def target(operator: str) -> Any:
    """The operator of a name in the table."""
    namespace, packet, *overload = operator.split(".")
    packet_of = getattr(getattr(torch.ops, namespace), packet)
    return getattr(packet_of, overload[0] if overload else "default")


def substituted(argument: Any, values: Mapping[int, Any]) -> Any:
    """An argument with its tensors replaced, by identity."""
    if isinstance(argument, Tensor | Stored):
        return values[id(argument)]
    if isinstance(argument, list | tuple):
        return [substituted(part, values) for part in argument]
    return argument


def leaves(argument: Any) -> Iterator[Tensor | Stored]:
    """The tensors of an argument."""
    if isinstance(argument, Tensor | Stored):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from leaves(part)


def tensors_of(sample: Sample) -> tuple[list[Tensor], list[Stored]]:
    """The inputs and the stored tensors of a call, each once."""
    found = {id(one): one for one in leaves([*sample.args, *sample.kwargs.values()])}
    inputs = [one for one in found.values() if isinstance(one, Tensor)]
    return inputs, [one for one in found.values() if isinstance(one, Stored)]


def program_of(sample: Sample) -> Program:
    """A graph that makes this one call."""
    inputs, stored = tensors_of(sample)
    graph = fx.Graph()
    nodes: dict[int, Any] = {}
    for number, one in enumerate(inputs):
        nodes[id(one)] = graph.placeholder(f"x{number}")
    for number, constant in enumerate(stored):
        nodes[id(constant)] = graph.get_attr(f"c{number}")
    kwargs = {name: substituted(one, nodes) for name, one in sample.kwargs.items()}
    args = tuple(substituted(one, nodes) for one in sample.args)
    graph.call_function(target(sample.operator), args, kwargs)
    graph.output(())
    specs = [Input(f"x{n}", one.dtype, tuple(one.shape)) for n, one in enumerate(inputs)]
    constants = {f"c{number}": one.tensor for number, one in enumerate(stored)}
    program = Program(graph, constants, tuple(specs), (), SymbolicShapes([]))
    propagate(program)
    return program


def flow_of(sample: Sample) -> Flow:
    """The flow of a graph that makes this one call."""
    return read_program(program_of(sample))


def evaluate(
    sample: Sample, inputs: list[Tensor], given: list[Tensor], written: Sequence[int] = ()
) -> list[Tensor]:
    """The results of the real operator with `given` in place of `inputs`, then what it wrote."""
    stored = tensors_of(sample)[1]
    copies = [one.clone() for one in given]
    values: dict[int, Any] = {id(old): new for old, new in zip(inputs, copies, strict=True)}
    values |= {id(one): one.tensor for one in stored}
    kwargs = {name: substituted(one, values) for name, one in sample.kwargs.items()}
    torch.default_generator.manual_seed(0)
    result = target(sample.operator)(*(substituted(one, values) for one in sample.args), **kwargs)
    several = result if isinstance(result, list | tuple) else [result]
    found = [one if isinstance(one, Tensor) else torch.tensor(one) for one in several]
    return [*found, *(copies[number] for number in written)]


def requests(one: Map, shape: tuple[int, ...]) -> np.ndarray:
    """The request of every element, by a map of numbers."""
    places = np.indices(shape) if shape else np.zeros((0,), dtype=int)
    total = np.full(shape, one.offset)
    for digit in one.digits:
        total = total + digit.weight * (places[digit.dim] // digit.stride % digit.extent)
    return total


Change = Callable[[Tensor, torch.Generator], Tensor]


def changes(dtype: torch.dtype) -> list[Change]:
    """What other requests may hold instead."""
    if dtype == torch.bool:
        return [lambda x, _: ~x]
    if not dtype.is_floating_point and not dtype.is_complex:
        return [_picked, lambda x, _: x.flip(tuple(range(x.dim())))]
    return [
        lambda x, chance: torch.randn(x.shape, generator=chance, dtype=torch.float64).to(x.dtype),
        lambda x, _: x * 100,
        lambda x, _: torch.full_like(x, float("nan")),
        lambda x, _: torch.full_like(x, float("inf")),
        lambda x, _: torch.zeros_like(x),
    ]


def _picked(x: Tensor, chance: torch.Generator) -> Tensor:
    """Other integers, all of which occur in `x`, so that they are valid as indices."""
    return x.flatten()[torch.randint(max(x.numel(), 1), x.shape, generator=chance)]


Labelling = dict[int, Map]


def labellings(shapes: list[tuple[int, ...]]) -> Iterator[Labelling]:
    """Maps for the inputs: one input alone in many ways, then all at once."""
    for number, shape in enumerate(shapes):
        for one in _maps(shape):
            yield {number: one}
    if len(shapes) < 2:
        return
    dims = [[d for d, n in enumerate(shape) if n > 1] for shape in shapes]
    some = [(n, own) for n, own in enumerate(dims) if own]
    for chosen in list(product(*(own for _, own in some)))[:9]:
        yield {n: rows(d, shapes[n][d]) for (n, _), d in zip(some, chosen, strict=True)}
    for place in (0, -1):
        start, labelling = 0, {}
        for n, own in some:
            size = shapes[n][own[place]]
            labelling[n] = make(start, [Digit(own[place], 1, size)])
            start += size
        yield labelling


def _maps(shape: tuple[int, ...]) -> Iterator[Map]:
    for dim, size in enumerate(shape):
        if size < 2:
            continue
        yield rows(dim, size)
        yield make(size - 1, [Digit(dim, 1, size, -1)])
        if size % 2 == 0 and size > 2:
            yield make(0, [Digit(dim, 2, size // 2)])
            yield make(0, [Digit(dim, 1, 2)])
    if sum(size > 1 for size in shape) > 1:
        strides = [int(np.prod(shape[dim + 1 :])) for dim in range(len(shape))]
        yield make(0, [Digit(d, 1, n, s) for d, (n, s) in enumerate(zip(shape, strides))])  # noqa: B905


def refute(sample: Sample) -> Outcome:
    """Compare what the rule says of a call with the operator itself."""
    inputs, _ = tensors_of(sample)
    outcome = Outcome()
    flow = flow_of(sample)
    node = flow.nodes[-1]
    places = {value.name: number for number, value in enumerate(flow.inputs)}
    written = [places[one.name] for one in node.outputs if one.name in places]
    before = evaluate(sample, inputs, inputs, written)
    for expression, real in zip(node.expressions, before, strict=True):
        sizes = tuple(expression.shape)
        if all(isinstance(size, int) for size in sizes) and sizes != tuple(real.shape):
            outcome.wrong.append(f"says shape {sizes} of a result of shape {tuple(real.shape)}")
    for labelling in labellings([tuple(one.shape) for one in inputs]):
        given = {value: Dependence() for value in flow.inputs}
        for n, one in labelling.items():
            given[flow.inputs[n]] = Dependence(frozenset({one}))
        interpreter = Interpreter(given)
        interpreter.run(flow)
        found = [interpreter.dependences[value] for value in node.outputs]
        outcome.labelled += 1
        outcome.apart += not any(one.causes for one in found)
        _compare(sample, inputs, written, labelling, before, found, outcome)
    return outcome


def _compare(
    sample: Sample,
    inputs: list[Tensor],
    written: list[int],
    labelling: Labelling,
    before: list[Tensor],
    found: list[Dependence],
    outcome: Outcome,
) -> None:
    owners = {n: requests(one, tuple(inputs[n].shape)) for n, one in labelling.items()}
    everyone = sorted(set(chain.from_iterable(owner.flat for owner in owners.values())))
    reads = [
        None if one.causes else [requests(m, tuple(real.shape)) for m in one.maps]
        for one, real in zip(found, before, strict=True)
    ]
    if not everyone or all(one is None for one in reads):
        return
    chance = torch.Generator().manual_seed(0)
    for request in {everyone[0], everyone[len(everyone) // 2], everyone[-1]}:
        for alone in (False, True):
            masks = {n: (owner == request) == alone for n, owner in owners.items()}
            kinds = max(len(changes(inputs[n].dtype)) for n in masks)
            for kind in (0,) if alone else range(kinds):
                given = _changed(inputs, masks, kind, chance)
                try:
                    after = evaluate(sample, inputs, given, written)
                except (RuntimeError, IndexError):
                    continue  # it refuses these values: an error is not a flow of data
                outcome.compared += 1
                for number, (old, new, maps) in enumerate(zip(before, after, reads, strict=True)):
                    if maps is None:
                        continue
                    steady = np.full(tuple(old.shape), True)
                    for owner in maps:
                        steady &= (owner != request) if alone else (owner == request)
                    if not same(old, new, torch.from_numpy(np.asarray(steady))):
                        outcome.wrong.append(
                            f"{sample.operator}: result {number} of inputs "
                            f"{[tuple(one.shape) for one in inputs]} labelled "
                            f"{ {n: str(m) for n, m in labelling.items()} } is said to read "
                            f"{sorted(map(str, found[number].maps))}, and changes with "
                            f"{'request' if alone else 'others than'} {request} (change {kind})"
                        )
                        return


def _changed(
    inputs: list[Tensor], masks: Mapping[int, np.ndarray], kind: int, chance: torch.Generator
) -> list[Tensor]:
    given = list(inputs)
    for number, mask in masks.items():
        ways = changes(inputs[number].dtype)
        other = ways[min(kind, len(ways) - 1)](inputs[number], chance)
        given[number] = torch.where(torch.from_numpy(np.asarray(mask)), other, inputs[number])
    return given


def same(old: Tensor, new: Tensor, where: Tensor) -> bool:
    """Whether two results agree bit by bit at some places; NaN agrees with NaN."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    equal = (old == new) | ((old != old) & (new != new))  # noqa: PLR0124
    return bool((equal | ~where).all())
