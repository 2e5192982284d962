"""Symbolic sizes: the batch, the sequence length and whatever else differs from call to call.

A program names its symbolic sizes (`B`, `T`, `P`). Here they become torch's `SymInt`s in one
`ShapeEnv`, so that a shape computed once holds for every batch size and length.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from planish.ir.errors import PlanishError

Extent = int | str
"""One extent of a shape: a number, or an expression over size names such as `"P+T"`."""


class SpecializedSize(PlanishError):
    """A size that had to stay symbolic was fixed to one value by the graph."""


@dataclass(frozen=True)
class Size:
    """A symbolic size.

    Attributes:
        name: as printed and as used in the shapes of inputs, e.g. `"B"`.
        example: the value that stands in where torch needs one; at least 2, since torch treats
            0 and 1 apart.
        min: the smallest value the program is meant for. Zero and one run where the operators
            allow it, even though shapes are derived for two and more.
        long: the name that exported files use, e.g. `"batch_size"`.
        max: the largest value the graph holds for, such as the length of a position table.
    """

    name: str
    example: int
    min: int = 1
    long: str = ""
    max: int | None = None

    def __str__(self) -> str:
        """The range, as programs print it: `1 <= T <= 512`."""
        return f"{self.min} <= {self.name}" + (f" <= {self.max}" if self.max else "")


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(expression: Extent, values: dict[str, Any]) -> Any:
    """The value of `expression` where each size name has the value given in `values`.

    Raises:
        ValueError: for anything but numbers, known names, `+`, `-`, `*`, `//` and brackets.
    """

    def walk(tree: ast.expr) -> Any:
        match tree:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](walk(left), walk(right))
        raise ValueError(f"not a size expression over {', '.join(values)}: {expression!r}")

    return walk(ast.parse(str(expression), mode="eval").body)


class SymbolicShapes:
    """The shape environment of a program and of every program made from it by passes."""

    def __init__(self, sizes: Iterable[Size]) -> None:
        self.sizes = tuple(sizes)
        self.environment = ShapeEnv(duck_shape=False)
        self.mode = FakeTensorMode(shape_env=self.environment, allow_non_fake_inputs=True)
        self._values: dict[str, Any] = {}
        self._names: dict[Any, sympy.Symbol] = {}
        for size in self.sizes:
            source = ConstantSource(size.name)
            symbol = self.environment.create_symbol(
                size.example, source, DimDynamic.DYNAMIC, constraint_dim=None
            )
            self._values[size.name] = self.environment.create_symintnode(
                symbol, hint=size.example, source=source
            )
            self._names[symbol] = sympy.Symbol(size.name, integer=True, positive=True)

    @property
    def names(self) -> dict[str, str]:
        """For each of torch's symbols, the name of the size."""
        return {str(symbol): str(name) for symbol, name in self._names.items()}

    def extent(self, expression: Extent) -> Any:
        """The `int` or `SymInt` that an extent stands for."""
        return evaluate(expression, self._values)

    def fake(self, dtype: torch.dtype, shape: Iterable[Extent]) -> torch.Tensor:
        """A tensor without data, of a symbolic shape."""
        with self.mode:
            return torch.empty([self.extent(extent) for extent in shape], dtype=dtype)

    def text(self, extent: Any) -> str:
        """An extent as people read it: `B`, `P + T`, `64`."""
        if isinstance(extent, torch.SymInt):
            return str(sympy.sympify(extent.node.expr).xreplace(self._names))
        return str(extent)

    def check(self) -> None:
        """Make sure that no size was fixed to a number or tied to another.

        Raises:
            SpecializedSize: naming the sizes and what they became.
        """
        fixed = {
            str(name): self.environment.replacements[symbol]
            for symbol, name in self._names.items()
            if symbol in self.environment.replacements
        }
        if fixed:
            names = {name: str(value.xreplace(self._names)) for name, value in fixed.items()}
            became = ", ".join(f"{name} = {value}" for name, value in sorted(names.items()))
            raise SpecializedSize(
                f"the graph holds only for {became}: some operator compares that size with a "
                "constant or bakes it in. Capture with another example size, or mark the "
                "dimension as static."
            )
