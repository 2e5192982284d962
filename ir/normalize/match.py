"""Patterns over graphs: what an operator looks like once an exporter has taken it apart.

A pattern is written as the expression it stands for: calls of operators (`mul(x, rsqrt(y))`),
variables (`node("x")`, `number("eps")`), alternatives (`one | other`) and plain constants.
Operators that commute match in either order, arguments that a pattern leaves out must have their
defaults, and dimensions count from the end, so that -1 is the last one however it was written.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from planish.ir.edit import Edit
from planish.ir.program import Program

aten = torch.ops.aten

Found = Mapping[str, Any]
"""What the variables of a pattern stand for."""


class Pattern:
    """A set of values of a graph, as data; `matches` gives it meaning."""

    def __or__(self, other: Pattern) -> Pattern:
        return Either(self, other)


@dataclass(frozen=True)
class Variable(Pattern):
    """A value of some type, the same one wherever the variable stands."""

    name: str
    kind: type | tuple[type, ...]


@dataclass(frozen=True)
class Either(Pattern):
    """What one of two patterns matches."""

    one: Pattern
    other: Pattern


@dataclass(frozen=True)
class Call(Pattern):
    """A call of one of several operators on arguments that match in turn."""

    targets: tuple[Callable[..., Any], ...]
    arguments: tuple[Any, ...]
    commutative: bool = False


@dataclass(frozen=True)
class Widened(Pattern):
    """What `inner` matches, or that in a wider floating-point type."""

    inner: Pattern


@dataclass(frozen=True)
class Sole(Pattern):
    """What `inner` matches, where nothing but the node above reads it."""

    inner: Pattern


def node(name: str) -> Variable:
    """A variable for something that the graph computes or reads."""
    return Variable(name, fx.Node)


def number(name: str) -> Variable:
    """A variable for a number written in the graph."""
    return Variable(name, (int, float))


def anything(name: str) -> Variable:
    """A variable for any argument, `None` and lists among them."""
    return Variable(name, object)


ANY = anything("_")
"""Any argument; it need not be the same wherever this stands."""


def calls(*targets: Callable[..., Any], commutative: bool = False) -> Callable[..., Pattern]:
    """A function that builds patterns for calls of any of `targets`."""
    return lambda *arguments: Call(targets, arguments, commutative)


add = calls(aten.add.Tensor, aten.add.Scalar, commutative=True)
sub = calls(aten.sub.Tensor, aten.sub.Scalar)
mul = calls(aten.mul.Tensor, aten.mul.Scalar, commutative=True)
div = calls(aten.div.Tensor, aten.div.Scalar)
power = calls(aten.pow.Tensor_Scalar)
mean = calls(aten.mean.dim)
neg = calls(aten.neg.default)
tanh = calls(aten.tanh.default)
matmul = calls(aten.matmul.default, aten.mm.default, aten.bmm.default)
reshape = calls(aten.reshape.default)
cut = calls(aten.slice.Tensor)
cat = calls(aten.cat.default)
getitem = calls(operator.getitem)
transpose = calls(aten.transpose.int)
permute = calls(aten.permute.default)


def matches(pattern: Any, value: Any, found: Found) -> Iterator[Found]:
    """Every way to read `value` as `pattern`, given what variables already stand for."""
    match pattern:
        case Variable():
            yield from _as_variable(pattern, value, found)
        case Either(one, other):
            yield from matches(one, value, found)
            yield from matches(other, value, found)
        case Call():
            yield from _as_call(pattern, value, found)
        case Widened(inner) | Sole(inner):
            for candidate in _candidates(pattern, value):
                yield from matches(inner, candidate, found)
        case list() | tuple():
            if isinstance(value, (list, tuple)):
                yield from _all_match(pattern, value, found)
        case _:
            if _same_constant(pattern, value):
                yield found


def _as_variable(variable: Variable, value: Any, found: Found) -> Iterator[Found]:
    if not isinstance(value, variable.kind):
        return
    if variable is ANY:
        yield found
    elif variable.name not in found:
        yield {**found, variable.name: value}
    elif found[variable.name] == value:
        yield found


def _as_call(pattern: Call, value: Any, found: Found) -> Iterator[Found]:
    if not isinstance(value, fx.Node) or value.target not in pattern.targets:
        return
    given, rest = _split_arguments(value, len(pattern.arguments))
    if rest:
        return
    yield from _all_match(pattern.arguments, given, found)
    if pattern.commutative:
        yield from _all_match(pattern.arguments, [given[1], given[0], *given[2:]], found)


def _candidates(pattern: Widened | Sole, value: Any) -> Iterator[Any]:
    """What the pattern inside `pattern` may match: `value`, or what it was cast from."""
    if isinstance(pattern, Sole):
        if isinstance(value, fx.Node) and len(value.users) == 1:
            yield value
        return
    if isinstance(value, fx.Node) and value.target is aten._to_copy.default:
        narrow: Any = value.args[0]
        if torch.promote_types(dtype(narrow), dtype(value)) == dtype(value):
            yield narrow
    yield value


def _all_match(patterns: Sequence[Any], values: Sequence[Any], found: Found) -> Iterator[Found]:
    """Every way to read `values` as `patterns`, one by one, of equal number."""
    if len(patterns) != len(values):
        return
    if not patterns:
        yield found
        return
    for first in matches(patterns[0], values[0], found):
        yield from _all_match(patterns[1:], values[1:], first)


def _same_constant(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and not isinstance(one, bool):
        return type(other) in {int, float} and math.isclose(one, other, rel_tol=1e-6)
    return type(one) is type(other) and bool(one == other)


def _split_arguments(call: fx.Node, count: int) -> tuple[list[Any], list[Any]]:
    """The first `count` arguments, and those of the rest that differ from their defaults."""
    schema = getattr(call.target, "_schema", None)
    if schema is None:
        return list(call.args[:count]), list(call.args[count:])
    written = dict(zip((spec.name for spec in schema.arguments), call.args, strict=False))
    written |= call.kwargs
    first = [
        from_end(call, value) if spec.name in _DIMENSIONS else value
        for spec in schema.arguments[:count]
        for value in [written.get(spec.name, spec.default_value)]
    ]
    rest = [
        written[spec.name]
        for spec in schema.arguments[count:]
        if not _same_constant(spec.default_value, written.get(spec.name, spec.default_value))
    ]
    return first, rest


_DIMENSIONS = frozenset({"dim", "dims", "dim0", "dim1"})
_MAKE_A_DIMENSION = (aten.unsqueeze.default, aten.stack.default)


def from_end(call: fx.Node, dims: Any) -> Any:
    """Dimensions that a call names, counted from the end."""
    first: Any = call.args[0]
    rank = (first[0] if isinstance(first, (list, tuple)) else first).meta["val"].dim()
    rank += call.target in _MAKE_A_DIMENSION
    if isinstance(dims, (list, tuple)):
        return [dim - rank if dim >= 0 else dim for dim in dims]
    return dims - rank if isinstance(dims, int) and dims >= 0 else dims


def dtype(value: fx.Node) -> torch.dtype:
    """The dtype of a node's tensor."""
    tensor: Tensor = value.meta["val"]
    return tensor.dtype


def shape(value: fx.Node) -> tuple[Any, ...]:
    """The shape of a node's tensor: numbers and symbolic sizes."""
    return tuple(value.meta["val"].shape)


def same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two shapes agree for every value of the symbolic sizes. Adds no guards."""
    one, other = tuple(one), tuple(other)
    return len(one) == len(other) and all(
        a is b or statically_known_true(a == b) for a, b in zip(one, other, strict=True)
    )


def alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes have one shape and dtype."""
    return dtype(one) == dtype(other) and same(shape(one), shape(other))


@dataclass(frozen=True)
class Rule:
    """A rewrite: where `pattern` matches, the node becomes what `build` makes, unless `None`."""

    pattern: Pattern
    build: Callable[[Edit, fx.Node, Found], fx.Node | None]


def rewrite(program: Program, rules: Iterable[Rule]) -> Program:
    """Apply rules in one walk from inputs to outputs, to what they make as well."""
    rules = tuple(rules)
    with program.edit() as edit:
        for start in edit.nodes():
            here: fx.Node | None = start
            while here is not None and here.users:
                here = _apply(edit, here, rules)
    return edit.program


def _apply(edit: Edit, here: fx.Node, rules: Iterable[Rule]) -> fx.Node | None:
    for rule in rules:
        for found in matches(rule.pattern, here, {}):
            new = rule.build(edit, here, found)
            if new is not None:
                here.replace_all_uses_with(new)
                return new
    return None
