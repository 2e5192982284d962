"""Random graphs over a symbolic batch B and length T, one node after another.

Each node is made by one of the moves of `support.random_moves`. A move that does not fit the
values at hand makes nothing, and another is tried.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.program import IllFormed, Input, Program
from planish.ir.shapes import infer_call, infer_read
from planish.ir.sizes import Size, SymbolicShapes

aten = torch.ops.aten

INPUTS: tuple[tuple[torch.dtype, tuple[Any, ...], int | None], ...] = (
    (torch.float32, ("B", "T", 4), 0),
    (torch.float32, ("B", "T", 4), 0),
    (torch.float32, ("B", 4), 0),
    (torch.float32, ("B", "T"), 0),
    (torch.float32, ("T", "B", 4), 1),
    (torch.float32, ("B", 4, "T"), 0),
    (torch.float32, ("T", 4), None),
    (torch.int64, ("B",), 0),
    (torch.int64, ("B", "T"), 0),
    (torch.bool, ("B", "T"), 0),
)
"""Dtype, shape and batch axis. Integers are 0 or 1, so that they are valid as any index."""

Move = Callable[["Builder", fx.Node], fx.Node]


class Misfit(Exception):
    """A move does not fit the values at hand."""


@dataclass(frozen=True)
class RandomProgram:
    """A program each of whose outputs has the batch along a dimension: by node, which."""

    program: Program
    outputs: dict[fx.Node, int]


def symbols() -> SymbolicShapes:
    """B and T, with examples that no other size takes."""
    return SymbolicShapes([Size("B", 11), Size("T", 13)])


class Builder:
    """Makes one graph."""

    def __init__(self, chance: random.Random, shapes: SymbolicShapes, careful: float) -> None:
        self.chance = chance
        self.shapes = shapes
        self.careful = chance.random() < careful
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.inputs: list[Input] = []
        self.values: list[fx.Node] = []
        chosen = [INPUTS[0], INPUTS[7], *chance.choices(INPUTS[1:], k=chance.randint(1, 2))]
        for number, (dtype, shape, axis) in enumerate(chosen):
            node = self.graph.placeholder(f"x{number}")
            node.meta["val"] = shapes.fake(dtype, shape)
            self.inputs.append(Input(f"x{number}", dtype, shape, axis))
            self.values.append(node)
        self.sizes = {
            "B": self.call(aten.sym_size.int, self.values[0], 0),
            "T": self.call(aten.sym_size.int, self.values[0], 1),
        }

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a node.

        Raises:
            Misfit: if the operator refuses its arguments.
        """
        node = self.graph.call_function(target, args, kwargs)
        try:
            infer_call(node, self.shapes)
        except (IllFormed, TypeError, ValueError) as error:
            self.graph.erase_node(node)
            raise Misfit(str(error)) from error
        return node

    def stored(self, tensor: Tensor) -> fx.Node:
        """Add a node that reads a constant."""
        name = f"c{len(self.tensors)}"
        self.tensors[name] = tensor
        node = self.graph.get_attr(name)
        infer_read(node, tensor, self.shapes)
        return node

    def weight(self, *shape: int) -> fx.Node:
        """A random constant."""
        chance = torch.Generator().manual_seed(self.chance.randrange(1 << 30))
        return self.stored(torch.randn(shape, generator=chance) * 0.5)

    def texts(self, node: fx.Node) -> list[str]:
        """The sizes of a value, as text."""
        return [self.shapes.text(size) for size in node.meta["val"].shape]

    def size(self, text: str) -> Any:
        """A size as an argument: a number or a node."""
        if text not in self.sizes:
            if text.isdigit():
                return int(text)
            factors = text.split("*")
            if len(factors) < 2:
                raise Misfit(f"no node for {text}")
            self.sizes[text] = self.call(
                operator.mul, self.size("*".join(factors[:-1])), self.size(factors[-1])
            )
        return self.sizes[text]

    def product(self, texts: Iterable[str]) -> Any:
        """The product of sizes, as an argument."""
        ordered = sorted((f for text in texts for f in text.split("*")), key=_order)
        number = 1
        for factor in ordered:
            number *= int(factor) if factor.isdigit() else 1
        names = [factor for factor in ordered if not factor.isdigit()]
        if not names:
            return number
        return self.size("*".join([str(number), *names] if number > 1 else names))

    def dim(self, node: fx.Node) -> int:
        """A dimension; of careful graphs one without the batch, if there is one."""
        texts = self.texts(node)
        if not texts:
            raise Misfit("no dimensions")
        rest = [dim for dim, text in enumerate(texts) if "B" not in text]
        if self.careful or self.chance.random() < 0.5:
            if not rest:
                raise Misfit("no dimension without the batch")
            return self.chance.choice(rest)
        return self.chance.choice([dim for dim in range(len(texts)) if dim not in rest] or rest)

    def pick(self, fits: Callable[[fx.Node], bool]) -> fx.Node:
        """An earlier value that fits."""
        found = [node for node in self.values if fits(node)]
        if not found:
            raise Misfit("no value fits")
        return self.chance.choice(found)

    def fit(self, node: fx.Node, fits: Callable[[list[str]], bool]) -> fx.Node:
        """The value, or an earlier one, whose sizes fit."""
        if fits(self.texts(node)):
            return node
        return self.pick(lambda one: is_float(one) and fits(self.texts(one)))

    def like(self, node: fx.Node) -> fx.Node:
        """An earlier value of the same shape and of a floating-point dtype."""
        wanted = self.texts(node)
        return self.pick(lambda one: is_float(one) and self.texts(one) == wanted)


def _order(factor: str) -> tuple[bool, str]:
    return not factor.isdigit(), factor


def is_float(node: fx.Node) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def build(
    chance: random.Random, shapes: SymbolicShapes, moves: Sequence[Move], careful: float
) -> RandomProgram:
    """A program of 4 to 14 moves, each of whose results with the batch is an output.

    Raises:
        planish.ir.sizes.SpecializedSize: if an operator fixed a size; `shapes` is spoilt then.
    """
    builder = Builder(chance, shapes, careful)
    wanted = chance.randint(4, 14)
    last = builder.values[0]
    outputs: dict[fx.Node, int] = {}
    for _ in range(3 * wanted):
        start = last if chance.random() < 0.75 else chance.choice(builder.values)
        if not is_float(start):
            continue
        try:
            made = chance.choice(moves)(builder, start)
        except Misfit:
            continue
        if not is_float(made) or made.meta["val"].dim() > 5:
            continue
        builder.values.append(made)
        last = made
        texts = builder.texts(made)
        if "B" in texts:
            outputs[made] = texts.index("B")
        wanted -= 1
        if not wanted:
            break
    shapes.check()
    builder.graph.output(tuple(outputs))
    names = tuple(f"y{number}" for number in range(len(outputs)))
    inputs = tuple(builder.inputs)
    return RandomProgram(Program(builder.graph, builder.tensors, inputs, names, shapes), outputs)
