"""Random ATen graphs over a symbolic batch B and length T, one node after another.

Each node is made by one of the moves of `support.random_moves` and its neighbours. A move that does
not fit the values at hand makes nothing, and another is tried.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from planish.ir.program import IllFormed
from planish.ir.shapes import infer_call, infer_read
from planish.ir.sizes import Size, SymbolicShapes
from support.fuzz import Spec, some_inputs

aten = torch.ops.aten

DTYPES: dict[type[np.generic], torch.dtype] = {
    np.float32: torch.float32,
    np.int64: torch.int64,
    np.bool_: torch.bool,
}

Move = Callable[["Builder", fx.Node], fx.Node]


class Misfit(Exception):
    """A move does not fit the values at hand."""


def symbols() -> SymbolicShapes:
    """B and T, with examples that no other size takes."""
    return SymbolicShapes([Size("B", 11), Size("T", 13)])


class Builder:
    """Makes one graph.

    Attributes:
        careful: whether moves stay away from what mixes requests.
        tensors: what `get_attr` nodes read.
        graphs: those of control flow, by name.
        written: by name of a buffer or input, what a run leaves in it.
    """

    def __init__(self, chance: random.Random, shapes: SymbolicShapes, careful: bool) -> None:
        self.chance = chance
        self.shapes = shapes
        self.careful = careful
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.graphs: dict[str, fx.GraphModule] = {}
        self.written: dict[str, fx.Node] = {}
        self.inputs: list[Spec] = []
        self.values: list[fx.Node] = []
        self.sizes: dict[str, fx.Node] = {}

    def input(self, spec: Spec) -> fx.Node:
        """Add an input."""
        self.inputs.append(spec)
        return self.given(spec.name, self.shapes.fake(DTYPES[spec.dtype], spec.shape))

    def given(self, name: str, meta: Tensor) -> fx.Node:
        """Add a placeholder."""
        node = self.graph.placeholder(name)
        node.meta["val"] = meta
        self.values.append(node)
        return node

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
        if text.isdigit():
            return int(text)
        if text not in self.sizes:
            self.sizes[text] = self._measured(text) or self._multiplied(text)
        return self.sizes[text]

    def _measured(self, text: str) -> fx.Node | None:
        for node in self.values:
            if text in self.texts(node):
                return self.call(aten.sym_size.int, node, self.texts(node).index(text))
        return None

    def _multiplied(self, text: str) -> fx.Node:
        factors = text.split("*")
        if len(factors) < 2 or " " in text:
            raise Misfit(f"no node for {text}")
        return self.call(operator.mul, self.size("*".join(factors[:-1])), self.size(factors[-1]))

    def product(self, texts: Iterable[str]) -> Any:
        """The product of sizes, as an argument."""
        texts = list(texts)
        if any(" " in text for text in texts):
            raise Misfit("a sum of sizes")
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


def drawn(
    chance: random.Random, shapes: SymbolicShapes, moves: Sequence[Move], careful: float
) -> tuple[Builder, dict[fx.Node, int]]:
    """A graph of 4 to 14 moves: each of their results with the batch, and along which dimension.

    Raises:
        planish.ir.sizes.SpecializedSize: if an operator fixed a size; `shapes` is spoilt then.
    """
    builder = Builder(chance, shapes, chance.random() < careful)
    for spec in some_inputs(chance):
        builder.input(spec)
    wanted = chance.randint(4, 14)
    last = builder.values[0]
    results: dict[fx.Node, int] = {}
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
            results[made] = texts.index("B")
        wanted -= 1
        if not wanted:
            break
    shapes.check()
    return builder, results
