"""What a rule sees of a torch.fx node: its arguments by name, and sizes as `Count`s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from planish.ir.flow.call import Call
from planish.ir.flow.known import Known
from planish.ir.flow.polynomial import (
    Count,
    Polynomial,
    floor_quotient,
    product,
    row_strides,
)
from planish.ir.flow.vocabulary import Expression, Shape, Value
from planish.ir.operators import is_operator, schema

HARMLESS = frozenset(
    [
        "dtype",
        "layout",
        "device",
        "pin_memory",
        "memory_format",
        "non_blocking",
        "copy",
        "generator",
        "alpha",
        "implicit",
        "out_dtype",
        "names",
        "requires_grad",
    ]
)
"""Arguments that never change which elements are read."""


class Sizes:
    """Turns torch's symbolic sizes into `Count`s.

    Args:
        names: for each of torch's symbols, the name to print.
        ties: what is known of sizes besides: for a name, what it is equal to.
    """

    def __init__(self, names: Mapping[str, str], ties: Mapping[str, Count] | None = None) -> None:
        self._names = dict(names)
        self._ties = dict(ties or {})
        self._seen: dict[Any, Count] = {}

    def shape(self, tensor: Tensor) -> Shape:
        """The shape of a tensor without data."""
        return tuple(self.count(size) for size in tensor.shape)

    def count(self, size: Any) -> Count:
        """A size: a number or an expression."""
        if isinstance(size, int):
            return size
        expression = size.node.expr if isinstance(size, torch.SymInt) else size
        found = self._seen.get(expression)
        if found is None:
            found = self._seen[expression] = self._convert(sympy.sympify(expression))
        return found

    def _convert(self, expression: Any) -> Count:
        if expression.is_Integer:
            return int(expression)
        if expression.is_Symbol:
            symbol = str(expression.name)
            name = self._names.get(symbol, symbol)
            return self._ties.get(name, Polynomial.symbol(name))
        parts = [self.count(part) for part in expression.args]
        result = self._arithmetic(expression, parts)
        if result is None:
            # Rounded divisions and the like: a symbol of its own, the same for the same text.
            inner = ", ".join(map(str, parts))
            text = f"{type(expression).__name__}({inner})" if parts else str(expression)
            result = Polynomial.symbol(text)
        return result

    def _arithmetic(self, expression: Any, parts: list[Count]) -> Count | None:
        """Sums, products, powers and divisions without remainder."""
        result: Count | None = None
        if expression.is_Add:
            result = 0
            for part in parts:
                result = result + part
        elif expression.is_Mul and all(
            part.is_Integer or not part.is_Rational for part in expression.args
        ):
            result = product(parts)
        elif expression.is_Pow and isinstance(parts[1], int) and parts[1] > 0:
            result = product([parts[0]] * parts[1])
        elif type(expression).__name__ == "FloorDiv":
            result = floor_quotient(parts[0], parts[1])
        return result


class FxCall(Call):
    """A node's call, its arguments bound to the names of the operator's schema."""

    def __init__(
        self,
        node: fx.Node,
        outputs: tuple[Value, ...],
        resolve: Callable[[Any], Any],
        known: Mapping[Value, Known],
    ) -> None:
        self.node = node
        self.operator = (
            str(node.target).removesuffix(".default")
            if str(node.target).startswith("planish.")
            else str(node.target)
        )
        self.outputs = outputs
        self.known_values = known
        self._resolve = resolve
        self._arguments = {a.name: a for a in schema(node.target).arguments}
        given = dict(zip(self._arguments, node.args, strict=False))
        self._given: dict[str, Any] = {**given, **node.kwargs}
        self._asked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._arguments

    def __getitem__(self, name: str) -> Any:
        argument = self._arguments[name]
        self._asked.add(name)
        if name in self._given:
            return self._resolve(self._given[name])
        return argument.default_value if argument.has_default_value() else None

    def tensors(self) -> tuple[Expression, ...]:
        """All tensor operands; asks for every argument."""
        self._asked |= self._arguments.keys()
        found: list[Expression] = []

        def collect(resolved: Any) -> None:
            if isinstance(resolved, Expression):
                found.append(resolved)
            elif isinstance(resolved, list | tuple):
                for part in resolved:
                    collect(part)

        for given in self._given.values():
            collect(self._resolve(given))
        return tuple(found)

    def operands(self) -> tuple[Expression | None, ...]:
        """The tensor operands in order, None for those left out; asks for every argument."""
        found: list[Expression | None] = []
        for name, argument in self._arguments.items():
            if "Tensor" in str(argument.type):
                value = self[name]
                found += value if isinstance(value, list | tuple) else [value]
        self._asked |= self._arguments.keys()
        return tuple(found)

    def in_row_major_order(self, name: str) -> bool:
        """Whether an operand lies in memory of its own, in row-major order, for certain."""
        node = self._given.get(name)
        if not isinstance(node, fx.Node) or not is_operator(node.target):
            return False  # an input may be a part of something larger
        value = self._resolve(node)
        views = any(result.alias_info is not None for result in schema(node.target).returns)
        if views or not isinstance(value, Value):
            return False
        steps = zip(value.shape, row_strides(value.shape), node.meta["val"].stride(), strict=True)
        return all(size == 1 or step == self._resolve(given) for size, step, given in steps)

    def unread(self) -> tuple[str, ...]:
        """The arguments given and never asked for, harmless ones left out."""
        return tuple(
            name
            for name, value in self._given.items()
            if name not in self._asked
            and name not in HARMLESS
            and value != self._arguments[name].default_value
        )
