"""Symbolic sizes as ONNX knows them: names of dimensions, and integers computed at run time.

Every size in a program is an expression over its symbolic sizes (`B`, `T`, `P`), whichever way
the graph came to it. So sizes are lowered by what they are: the named ones are read off an
input's shape, and an expression becomes arithmetic on those.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import onnx_ir as ir
import sympy
import torch

from planish.ir.program import Program

Extent = int | torch.SymInt
"""One extent of a shape, as torch gives it."""

CONVENTIONS = {"past_sequence_length + sequence_length": "total_sequence_length"}
"""Expressions over sizes that exported language models have a customary name for."""


def expression(extent: Extent) -> Any:
    """An extent as an expression of sympy, over torch's own symbols."""
    return extent.node.expr if isinstance(extent, torch.SymInt) else sympy.Integer(extent)


def same(one: Extent, other: Extent) -> bool:
    """Whether two extents are equal whatever the sizes are. Asks torch for no guard."""
    return bool(expression(one) == expression(other))


def broadcast(*shapes: Sequence[Extent]) -> tuple[Extent, ...]:
    """The shape that several shapes stretch to. `torch.broadcast_shapes` would add guards."""
    rank = max(map(len, shapes))
    columns: Iterable[Sequence[Extent]] = zip(
        *((*[1] * (rank - len(shape)), *shape) for shape in shapes), strict=True
    )
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


Emit = Callable[..., ir.Value]
"""Emits a node with one output: `emit(operator, *inputs, **attributes)`."""


class Sizes:
    """Computes sizes in a graph under construction; each is an int64 tensor of shape [1]."""

    def __init__(
        self,
        program: Program,
        inputs: Mapping[str, ir.Value],
        emit: Emit,
        last: Collection[str] = (),
    ) -> None:
        """Sizes are read off the first input that has them.

        Args:
            program: whose sizes they are.
            inputs: of the graph.
            emit: emits a node.
            last: inputs whose sizes follow from those of others where they can, since what is
                bound to them may be longer than what it holds.
        """
        self._inputs = inputs
        self._emit = emit
        self._known: dict[Any, ir.Value] = {}
        self._dimensions: dict[Any, tuple[str, int]] = {}
        self._first: set[Any] = set()
        for spec in sorted(program.inputs, key=lambda spec: spec.name in last):
            for axis, extent in enumerate(spec.shape):
                size = expression(program.shapes.extent(extent))
                self._dimensions.setdefault(size, (spec.name, axis))
                if spec.name not in last:
                    self._first.add(size)

    def value(self, extent: Extent) -> ir.Value:
        """The value of a size.

        Raises:
            NotImplementedError: if it depends on data, or on a size that no input has.
        """
        return self._value(expression(extent))

    def _value(self, size: Any) -> ir.Value:
        if size not in self._known:
            self._known[size] = self._compute(size)
        return self._known[size]

    def _compute(self, size: Any) -> ir.Value:
        if size not in self._first and (found := self._difference(size)):
            return self._emit("Sub", *map(self._value, found))
        if size in self._dimensions and not size.is_number:
            name, axis = self._dimensions[size]
            return self._emit("Shape", self._inputs[name], start=axis, end=axis + 1)
        if size.is_Integer:
            return self._emit("Constant", value_ints=[int(size)])
        arithmetic = _ARITHMETIC.get(type(size).__name__)
        if arithmetic is None:
            raise NotImplementedError(f"the size {size} does not follow from the inputs' shapes")
        return arithmetic(self._emit, *map(self._value, size.args))

    def _difference(self, size: Any) -> tuple[Any, Any] | None:
        """Two sizes of inputs that a symbol is the difference of."""
        pairs = ((whole, whole - size) for whole in self._first if whole.is_Add and size.is_Symbol)
        return next((pair for pair in pairs if pair[1] in self._first), None)


def _chain(kind: str) -> Callable[..., ir.Value]:
    def compute(emit: Emit, *terms: ir.Value) -> ir.Value:
        return reduce(lambda left, right: emit(kind, left, right), terms)

    return compute


def _modulo(emit: Emit, left: ir.Value, right: ir.Value) -> ir.Value:
    return emit("Mod", left, right)  # takes the divisor's sign, as Python does


def _floor_divide(emit: Emit, left: ir.Value, right: ir.Value) -> ir.Value:
    # ONNX rounds towards zero; rounding up is written with negative numbers: -(-x // y).
    return emit("Div", emit("Sub", left, _modulo(emit, left, right)), right)


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
