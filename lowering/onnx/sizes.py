"""Symbolic sizes as ONNX knows them: names of dimensions, and integers computed at run time.

Every size in a program is an expression over its symbolic sizes (`B`, `T`, `P`), whichever way
the graph came to it. So sizes are lowered by what they are: the named ones are read off an
input's shape, and an expression becomes arithmetic on those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import sympy
import torch

from planish.ir.errors import PlanishError
from planish.ir.program import Program

if TYPE_CHECKING:
    from planish.lowering.onnx.builder import Builder

Extent = int | torch.SymInt
"""One extent of a shape, as torch gives it."""

CONVENTIONS = {"past_sequence_length + sequence_length": "total_sequence_length"}
"""Expressions over sizes that exported language models have a customary name for."""


class UnknownSize(PlanishError):
    """A size of the graph cannot be computed from the shapes of its inputs."""


def expression(extent: Extent) -> Any:
    """An extent as an expression of sympy, over torch's own symbols."""
    return extent.node.expr if isinstance(extent, torch.SymInt) else sympy.Integer(extent)


def same(one: Extent, other: Extent) -> bool:
    """Whether two extents are equal whatever the sizes are. Asks torch for no guard."""
    return bool(expression(one) == expression(other))


def broadcast(*shapes: Sequence[Extent]) -> tuple[Extent, ...]:
    """The shape that several shapes stretch to. `torch.broadcast_shapes` would add guards."""
    rank = max(map(len, shapes))
    columns = zip(*([1] * (rank - len(shape)) + list(shape) for shape in shapes), strict=True)
    return tuple(
        next((extent for extent in column if isinstance(extent, torch.SymInt) or extent != 1), 1)
        for column in columns
    )


def dimension_names(program: Program) -> Callable[[Extent], int | str]:
    """A function that names dimensions as files do: 64, `batch_size`, `total_sequence_length`."""
    names = {
        expression(program.shapes.extent(size.name)): sympy.Symbol(size.long or size.name)
        for size in program.sizes
    }

    def name(extent: Extent) -> int | str:
        if not isinstance(extent, torch.SymInt):
            return extent
        text = str(expression(extent).xreplace(names))
        return CONVENTIONS.get(text, text)

    return name


def zero_test(program: Program) -> Callable[[Extent], bool]:
    """A function that says whether an extent may be zero, given the least value of each size."""
    least = {
        expression(program.shapes.extent(size.name)): sympy.Integer(size.min)
        for size in program.sizes
    }
    return lambda extent: not expression(extent).xreplace(least).is_positive


class Sizes:
    """Computes sizes in a graph under construction; each is an int64 tensor of shape [1]."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._known: dict[Any, ir.Value] = {}
        self._read: dict[Any, tuple[str, int]] = {}
        for spec in builder.program.inputs:
            for axis, extent in enumerate(spec.shape):
                symbol = expression(builder.program.shapes.extent(extent))
                self._read.setdefault(symbol, (spec.name, axis))

    def value(self, extent: Extent) -> ir.Value:
        """The value of a size.

        Raises:
            UnknownSize: if it depends on data, or on a size that no input has as a dimension.
        """
        return self._value(expression(extent))

    def _value(self, term: Any) -> ir.Value:
        if term not in self._known:
            self._known[term] = self._compute(term)
        return self._known[term]

    def _compute(self, term: Any) -> ir.Value:
        if isinstance(term, (int, sympy.Integer)):
            return self._builder.constant([int(term)])
        if term in self._read:
            name, axis = self._read[term]
            value = self._builder.inputs[name]
            return self._builder.op("Shape", value, start=axis, end=axis + 1)
        kind = type(term).__name__
        if kind not in _ARITHMETIC:
            raise UnknownSize(
                f"{self._builder.where}: the size {term} cannot be computed from the shapes of the "
                "inputs, so it depends on the data or on arithmetic that ONNX lowering lacks. Mark "
                "the dimension as static, or give an input that has this size as a dimension."
            )
        return _ARITHMETIC[kind](self._builder, *map(self._value, term.args))


def _chain(kind: str) -> Callable[..., ir.Value]:
    def emit(b: Builder, *terms: ir.Value) -> ir.Value:
        return reduce(lambda left, right: b.op(kind, left, right), terms)

    return emit


def _modulo(b: Builder, left: ir.Value, right: ir.Value) -> ir.Value:
    return b.op("Mod", left, right)  # takes the divisor's sign, as Python does


def _floor_divide(b: Builder, left: ir.Value, right: ir.Value) -> ir.Value:
    # ONNX rounds towards zero; rounding up is written with negative numbers: -(-x // y).
    return b.op("Div", b.op("Sub", left, _modulo(b, left, right)), right)


_ARITHMETIC: dict[str, Callable[..., ir.Value]] = {
    "Add": _chain("Add"),
    "Mul": _chain("Mul"),
    "Max": _chain("Max"),
    "Min": _chain("Min"),
    "Pow": _chain("Pow"),
    "FloorDiv": _floor_divide,
    "CleanDiv": _floor_divide,
    "Mod": _modulo,
    "PythonMod": _modulo,
}
"""How each function of size expressions is computed, by its name in sympy and in torch."""
