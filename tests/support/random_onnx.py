"""Random ONNX graphs over a symbolic batch B and length T, one node after another.

Each node is made by one of the moves of the neighbouring files, which knows the shape of what it
makes; a run checks that. A move that does not fit the values at hand makes nothing, and another is
tried.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from planish.ir.flow.polynomial import Count, Polynomial, product
from support.fuzz import Spec

B, T = Polynomial.symbol("B"), Polynomial.symbol("T")

TYPES = {"float": TensorProto.FLOAT, "int": TensorProto.INT64, "bool": TensorProto.BOOL}
DTYPES = {np.float32: "float", np.int64: "int", np.bool_: "bool"}

Dims = tuple[Count, ...]
Move = Callable[["Builder", "Held"], "Held"]


class Misfit(Exception):
    """A move does not fit the values at hand."""


@dataclass(frozen=True)
class Held:
    """A value of a graph: what it is called, how large it is, and of which of `TYPES`."""

    name: str
    dims: Dims
    dtype: str = "float"

    @property
    def rank(self) -> int:
        return len(self.dims)


def has_batch(size: Count) -> bool:
    """Whether a size grows with the batch."""
    return isinstance(size, Polynomial) and "B" in size.symbols


@dataclass
class Builder:
    """Makes one graph.

    Attributes:
        chance: what decides.
        careful: whether moves stay away from what mixes requests.
        version: of ONNX's operators.
        nodes: what was made.
        values: what moves may use, those of enclosing graphs too.
        stored: constants, by name.
        functions: the model's own.
        closed: whether the graph is a function's, which has no constants of its own.
        depth: how many graphs enclose it.
    """

    chance: random.Random
    careful: bool
    version: int
    values: list[Held] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    closed: bool = False
    depth: int = 0
    names: Iterable[int] = field(default_factory=count)
    _sizes: dict[Count, str] = field(default_factory=dict)

    def inner(self, given: Sequence[Held], closed: bool = False) -> Builder:
        """A builder of a nested graph, or of a function's."""
        values = list(given) if closed else [*self.values, *given]
        sizes = {} if closed else dict(self._sizes)
        return Builder(
            self.chance, self.careful, self.version, values, [],
            self.stored, self.functions, closed or self.closed, self.depth + 1, self.names, sizes,
        )  # fmt: skip

    def fresh(self) -> str:
        """A name that nothing else has."""
        return f"v{next(iter(self.names))}"

    def several(
        self,
        operator: str,
        inputs: Sequence[Held | str],
        dims: Sequence[Dims],
        dtype: str = "float",
        **attributes: Any,
    ) -> list[Held]:
        """Add a node with results of these shapes."""
        results = [Held(self.fresh(), one, dtype) for one in dims]
        names = [one if isinstance(one, str) else one.name for one in inputs]
        outputs = [one.name for one in results]
        self.nodes.append(helper.make_node(operator, names, outputs, **attributes))
        return results

    def call(
        self,
        operator: str,
        *inputs: Held | str,
        dims: Dims,
        dtype: str = "float",
        **attributes: Any,
    ) -> Held:
        """Add a node with one result."""
        (result,) = self.several(operator, inputs, [dims], dtype, **attributes)
        return result

    def constant(self, array: Any, dtype: type[np.generic] = np.float32) -> Held:
        """A constant: stored in the model, or a node."""
        array = np.asarray(array, dtype)
        kind = DTYPES.get(array.dtype.type, "other")
        held = Held(self.fresh(), tuple(array.shape), kind)
        if self.closed or self.chance.random() < 0.2:
            value = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [held.name], value=value))
        else:
            self.stored[held.name] = array
        return held

    def integers(self, *numbers: int) -> Held:
        """A constant list of integers."""
        return self.constant(numbers, np.int64)

    def weight(self, *shape: int) -> Held:
        """A random constant."""
        chance = np.random.default_rng(self.chance.randrange(1 << 30))
        return self.constant(chance.standard_normal(shape) * 0.5)

    def size(self, size: Count) -> str:
        """A list of one integer, which is a size that some value has, or a number."""
        if isinstance(size, int):
            return self.integers(size).name
        if size not in self._sizes:
            held = next((one for one in self.values if size in one.dims), None)
            if held is None:
                raise Misfit(f"nothing has the size {size}")
            all_sizes = self.call("Shape", held, dims=(held.rank,), dtype="int")
            place = self.integers(held.dims.index(size))
            found = self.call("Gather", all_sizes, place, dims=(1,), dtype="int")
            self._sizes[size] = found.name
        return self._sizes[size]

    def shape(self, parts: Sequence[Sequence[Count]]) -> str:
        """A list of sizes, each the product of sizes that values have."""
        sizes = []
        for factors in parts:
            first, *rest = [product(factors)] if all(map(_is_int, factors)) else factors
            name = self.size(first)
            for factor in rest:
                name = self.call("Mul", name, self.size(factor), dims=(1,), dtype="int").name
            sizes.append(name)
        return self.call("Concat", *sizes, dims=(len(sizes),), dtype="int", axis=0).name

    def reshape(self, x: Held, parts: Sequence[Sequence[Count]]) -> Held:
        """The elements under another shape, of which one size may be left to be worked out."""
        dims = tuple(product(factors) for factors in parts)
        if not dims:
            raise Misfit("no dimensions")
        chosen = list(parts)
        if self.chance.random() < 0.4:
            chosen[self.chance.randrange(len(chosen))] = [-1]
        return self.call("Reshape", x, self.shape(chosen), dims=dims, dtype=x.dtype)

    def dim(self, x: Held) -> int:
        """A dimension; of careful graphs one without the batch, if there is one."""
        if not x.dims:
            raise Misfit("no dimensions")
        rest = [dim for dim, size in enumerate(x.dims) if not has_batch(size)]
        if self.careful or self.chance.random() < 0.5:
            if not rest:
                raise Misfit("no dimension without the batch")
            return self.chance.choice(rest)
        return self.chance.choice([dim for dim in range(x.rank) if dim not in rest] or rest)

    def pick(self, fits: Callable[[Held], bool]) -> Held:
        """An earlier value that fits."""
        found = [one for one in self.values if fits(one)]
        if not found:
            raise Misfit("no value fits")
        return self.chance.choice(found)

    def fit(self, x: Held, fits: Callable[[Dims], bool]) -> Held:
        """The value, or an earlier one, whose sizes fit."""
        return x if fits(x.dims) else self.pick(lambda one: is_float(one) and fits(one.dims))

    def like(self, x: Held) -> Held:
        """An earlier value of the same shape."""
        return self.pick(lambda one: is_float(one) and one.dims == x.dims)

    def moved(self, x: Held, moves: Sequence[Move], most: int) -> Held:
        """Some moves that keep the shape."""
        wanted = x.dims
        for _ in range(4 * most):
            made = self.tried(moves, x)
            if made is not None and made.dims == wanted:
                self.values.append(made)
                x = made
                most -= 1
                if not most:
                    break
        return x

    def tried(self, moves: Sequence[Move], x: Held) -> Held | None:
        """What a move makes; None, and nothing is left of it, if it does not fit."""
        nodes, sizes = len(self.nodes), dict(self._sizes)
        try:
            made = self.chance.choice(moves)(self, x)
        except Misfit:
            del self.nodes[nodes:]
            self._sizes = sizes
            return None
        return made if is_float(made) and made.rank <= 5 else None

    def graph(self, inputs: Sequence[Held], outputs: Sequence[Held]) -> onnx.GraphProto:
        """What was made, as a nested graph."""
        given = [
            helper.make_tensor_value_info(one.name, TYPES[one.dtype], [None] * one.rank)
            for one in inputs
        ]
        results = [onnx.ValueInfoProto(name=one.name) for one in outputs]
        return helper.make_graph(self.nodes, "nested", given, results)


def _is_int(size: Count) -> bool:
    return isinstance(size, int)


def is_float(one: Held) -> bool:
    return one.dtype == "float"


def entered(builder: Builder, specs: Sequence[Spec]) -> None:
    """Give a graph its inputs."""
    symbols = {"B": B, "T": T}
    for spec in specs:
        dims = tuple(symbols[one] if isinstance(one, str) else one for one in spec.shape)
        builder.values.append(Held(spec.name, dims, DTYPES[spec.dtype]))
