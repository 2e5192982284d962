"""Reading torch.fx graphs as `Flow`s: programs, exported programs, nested graphs."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from planish.ir.flow import higher_order
from planish.ir.flow.call import Call, NotCovered, Rule, apply
from planish.ir.flow.graph import Flow, Node, State
from planish.ir.flow.known import Known, Numbers, numbers, of
from planish.ir.flow.memory import Memory, written
from planish.ir.flow.polynomial import (
    Count,
    Polynomial,
    data_decides,
    floor_quotient,
    product,
    row_strides,
)
from planish.ir.flow.vocabulary import Expression, Fill, Opaque, Shape, Value, everything
from planish.ir.operators import HigherOrderOperator, is_operator, schema
from planish.ir.program import Program
from planish.ir.rules.aten import LEARN, RULES, WRITES

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

_FOLLOWED = (torch.int64, torch.int32, torch.bool)
"""The dtypes whose values may be known: narrower ones wrap, floating-point ones round."""


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


class _FxCall(Call):
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
        found: list[Expression | None] = []
        for name, argument in self._arguments.items():
            if "Tensor" in str(argument.type):
                value = self[name]
                found += value if isinstance(value, list | tuple) else [value]
        self._asked |= self._arguments.keys()
        return tuple(found)

    def in_row_major_order(self, name: str) -> bool:
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
        return tuple(
            name
            for name, value in self._given.items()
            if name not in self._asked
            and name not in HARMLESS
            and value != self._arguments[name].default_value
        )


class _Reader:
    """Walks one fx graph. Each torch value is a `Value`, a tuple of them, or a size."""

    def __init__(
        self,
        sizes: Sizes,
        graph: fx.Graph,
        module: fx.GraphModule | None = None,
        declared: Mapping[str, Rule] | None = None,
    ) -> None:
        self.sizes = sizes
        self.memory = Memory(graph)
        self.module = module
        self.declared = declared or {}
        self.values: dict[fx.Node, Any] = {}
        self.known: dict[Value, Known] = {}
        self.entered: dict[fx.Node, Value] = {}
        self.nodes: list[Node] = []
        self.unknown: Counter[str] = Counter()
        self.assertions = 0

    def enter(self, node: fx.Node, name: str, tensor: Tensor | None = None) -> Value:
        """The value of an input, or of a stored tensor, whose elements may be known."""
        value: Value = self.value(name, node.meta["val"])
        self.values[node] = self.entered[node] = value
        # What a run writes holds other numbers from the second run on.
        steady = tensor is not None and not self.memory.changes(node)
        known = stored_numbers(tensor) if tensor is not None and steady else None
        if known is not None:
            self.known[value] = known
        return value

    def flow(
        self,
        inputs: Iterable[Value],
        stored: Iterable[Value],
        outputs: Mapping[str, fx.Node],
        states: Iterable[State] = (),
    ) -> Flow:
        """What was read."""
        return Flow(
            tuple(inputs),
            tuple(stored),
            tuple(self.nodes),
            {name: self.values[node] for name, node in outputs.items()},
            (*states, *self.changed()),
            self.known,
            dict(self.unknown),
            assertions=self.assertions,
        )

    def changed(self) -> Iterator[State]:
        """What was written in place."""
        for node, before in self.entered.items():
            if self.values[node] is not before:
                yield State(before.name, before, self.values[node])

    def nested(self, name: str) -> Flow:
        """The flow of a nested graph, all of whose placeholders are inputs.

        Raises:
            NotCovered: if it writes in place.
        """
        graph = getattr(self.module, name)
        inner = _Reader(self.sizes, graph.graph, graph, self.declared)
        inputs, stored = [], []
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                inputs.append(inner.enter(node, node.name))
            elif node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor):
                stored.append(inner.enter(node, node.name))
            elif node.op == "call_function":
                inner.call(node)
        if any(inner.changed()):
            raise NotCovered("a nested graph writes in place")
        self.unknown.update(inner.unknown)
        returned = enumerate(_returned(graph.graph))
        return inner.flow(inputs, stored, {str(number): node for number, node in returned})

    def value(self, name: str, meta: Any) -> Any:
        """A `Value` for what a node holds: a tensor, a size, or several."""
        if isinstance(meta, Tensor):
            return Value(name, self.sizes.shape(meta), meta.dtype)
        if isinstance(meta, list | tuple):
            return tuple(self.value(f"{name}.{n}", part) for n, part in enumerate(meta))
        return Value(name, (), None)

    def resolve(self, argument: Any) -> Any:
        """An argument as rules see it: expressions, sizes, plain values."""
        if isinstance(argument, fx.Node):
            meta = argument.meta.get("val")
            if isinstance(meta, torch.SymInt):
                return self.sizes.count(meta)
            if isinstance(meta, Tensor | list | tuple):
                return self.values[argument]
            return meta
        if isinstance(argument, list | tuple):
            return [self.resolve(part) for part in argument]
        if isinstance(argument, torch.SymInt):
            return self.sizes.count(argument)
        return argument

    def call(self, node: fx.Node) -> None:
        """Read one call and add it to the nodes."""
        if node.target is operator.getitem:
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        value = self.value(node.name, node.meta.get("val"))
        self.values[node] = value
        outputs = value if isinstance(value, tuple) else (value,)
        if isinstance(node.target, HigherOrderOperator):
            self._higher_order(node, outputs)
            return
        if not is_operator(node.target):
            self._size_arithmetic(node, outputs)
            return
        if str(node.target).startswith(_SILENT):
            self.assertions += str(node.target).startswith(_ASSERTIONS)
            return
        call = _FxCall(node, outputs, self.resolve, self.known)
        expressions: tuple[Expression, ...]
        if call.operator in _SIZE_QUERIES:
            expressions = (self._size_query(node, outputs[0]),)
        else:
            rule = RULES.get(call.operator) or self.declared.get(node.target.name())
            expressions, why = apply(rule, call)
            if why is not None:
                self.unknown[call.operator] += 1
        self._learn(call, outputs, expressions)
        self._add(node, call.operator, outputs, expressions, self._written(call))

    def _written(self, call: _FxCall) -> dict[fx.Node, tuple[Expression, ...]]:
        """What nodes show after a call that writes in place, where they show something else.

        Nothing is claimed of what may show a part of the same memory, or it as another type.
        """
        found: dict[fx.Node, tuple[Expression, ...]] = {}
        rule = WRITES.get(call.operator)
        after = None if rule is None else rule.after(call)
        for name, nodes in written(call.node).items():
            for node in nodes if after is None or name in after else ():
                found |= self._anything(node, call.tensors(), f"{call.operator} writes in place")
                if after is not None:
                    found[node] = (after[name],)
        return found

    def _anything(
        self, node: fx.Node, read: tuple[Expression, ...], why: str
    ) -> dict[fx.Node, tuple[Expression, ...]]:
        """Nothing is known of what a node shows from now on, nor of what shares its memory."""
        family = [one for one in self.memory.family(node) if one in self.values]
        shown = {
            one: old if isinstance(old := self.values[one], tuple) else (old,) for one in family
        }
        before = tuple(part for parts in shown.values() for part in parts)
        return {
            one: tuple(Opaque(part.shape, (*read, *before), why) for part in parts)
            for one, parts in shown.items()
        }

    def _learn(
        self, call: _FxCall, outputs: tuple[Value, ...], expressions: tuple[Expression, ...]
    ) -> None:
        for output, expression in zip(outputs, expressions, strict=True):
            if output.dtype in _FOLLOWED:
                known = of(expression, self.known)
                learn = LEARN.get(call.operator)
                if known is None and learn is not None:
                    known = learn(call)
                if known is not None and _is_of(known, output):
                    self.known[output] = known

    def _size_query(self, node: fx.Node, output: Value) -> Expression:
        """A size is shared by all requests, unless data decided it."""
        source = self.values[node.args[0]]  # type: ignore[index]
        size = self.resolve(node)
        if isinstance(size, Polynomial) and data_decides(size):
            return everything("statistic", (), source)
        return Fill(output.shape)

    def _size_arithmetic(self, node: fx.Node, outputs: tuple[Value, ...]) -> None:
        self._add(node, str(node.target), outputs, tuple(Fill(one.shape) for one in outputs))

    def _higher_order(self, node: fx.Node, outputs: tuple[Value, ...]) -> None:
        name = str(node.target)
        changed: dict[fx.Node, tuple[Expression, ...]] = {}
        try:
            expressions = higher_order.read(name, node.args, outputs, self.resolve, self.nested)
        except NotCovered as problem:
            self.unknown[name] += 1
            operands = tuple(self.values[one] for one in node.all_input_nodes if one in self.values)
            flat = tuple(one for one in operands if isinstance(one, Value))
            expressions = tuple(Opaque(one.shape, flat, str(problem)) for one in outputs)
            for one in written(node).get("", ()):
                changed |= self._anything(one, flat, str(problem))
        self._add(node, name, outputs, expressions, changed)

    def _add(
        self,
        node: fx.Node,
        operator: str,
        outputs: tuple[Value, ...],
        expressions: tuple[Expression, ...],
        changed: Mapping[fx.Node, tuple[Expression, ...]] | None = None,
    ) -> None:
        controls = tuple(
            self.values[argument]
            for argument in node.all_input_nodes
            if not isinstance(argument.meta.get("val"), Tensor | list | tuple)
            and argument in self.values
        )
        where = str(node.meta.get("module") or "") or _source_line(node)
        for one, shown in (changed or {}).items():
            old = self.values[one]
            parts = old if isinstance(old, tuple) else (old,)
            new = tuple(Value(part.name, part.shape, part.dtype) for part in parts)
            self.values[one] = new if isinstance(old, tuple) else new[0]
            outputs, expressions = (*outputs, *new), (*expressions, *shown)
        self.nodes.append(Node(node.name, operator, outputs, expressions, where, controls))


_SIZE_QUERIES = frozenset(
    [
        "aten.sym_size.int",
        "aten.sym_numel.default",
        "aten.sym_stride.int",
        "aten.sym_storage_offset.default",
        "aten.sym_is_contiguous.default",
    ]
)

_ASSERTIONS = ("aten._assert_async", "aten._assert_scalar", "aten._functional_assert")
"""Checks of values, which can stop a run but change no result."""

_SILENT = ("aten._assert_tensor_metadata", "aten.sym_constrain_range", *_ASSERTIONS)
"""Those, and checks of what is known when a graph is made."""


def _is_of(known: Known, output: Value) -> bool:
    """Whether what is known fits the value's type: truth values for booleans, else integers."""
    if not isinstance(known, Numbers):
        return bool(output.dtype != torch.bool)
    truths = bool(output.dtype == torch.bool)
    if any(isinstance(x, bool) != truths for x in known.array.flat):
        return False
    # What does not fit wraps around; what is computed from it then is not what it was.
    return truths or all(_fits(x, output.dtype) for x in known.array.flat if isinstance(x, int))


def _fits(number: int, dtype: torch.dtype) -> bool:
    return torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max


def _source_line(node: fx.Node) -> str:
    """The line of the model's own code that a node came from."""
    lines = [
        line.strip()
        for line in str(node.meta.get("stack_trace") or "").splitlines()
        if line.strip().startswith("File ")
    ]
    if not lines:
        return ""
    path, _, rest = lines[-1].removeprefix('File "').partition('", line ')
    return f"{path.rsplit('/', 1)[-1]}:{rest.partition(',')[0]}"


def stored_numbers(tensor: Tensor) -> Known | None:
    """The elements of a small stored tensor of integers or truth values."""
    if tensor.dtype not in _FOLLOWED or tensor.numel() > 4096 or tensor.is_meta:
        return None
    return numbers(tensor.tolist(), tuple(tensor.shape))


def read_program(program: Program, ties: Mapping[str, Count] | None = None) -> Flow:
    """The flow of a program.

    Args:
        program: what to read.
        ties: for names of sizes, what they are equal to besides.
    """
    reader = _Reader(Sizes(program.shapes.names, ties), program.graph)
    inputs: list[Value] = []
    stored: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            inputs.append(reader.enter(node, str(node.target)))
        elif node.op == "get_attr":
            name = str(node.target)
            if stored.setdefault(name, node) is node:
                reader.enter(node, name, program.tensors[name])
            reader.values[node] = reader.values[stored[name]]
        elif node.op == "call_function":
            reader.call(node)
    outputs = zip(program.outputs, program.output_nodes, strict=True)
    read = [reader.entered[node] for node in stored.values()]
    return reader.flow(inputs, read, dict(outputs))


def read_exported(
    exported: ExportedProgram,
    ties: Mapping[str, Count] | None = None,
    declared: Mapping[str, Rule] | None = None,
) -> Flow:
    """The flow of an exported program, which has to be functional (`run_decompositions`).

    What it writes to buffers and inputs are states. Nested graphs are read with it.

    Args:
        exported: what to read.
        ties: for names of sizes, what they are equal to besides.
        declared: rules for operators without one, by name: `my::op`.
    """
    reader = _Reader(Sizes({}, ties), exported.graph, exported.graph_module, declared)
    signature = exported.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    kept = {str(spec.target) for spec in signature.output_specs if spec.kind in _WRITES}
    inputs: list[Value] = []
    stored: dict[str, Value] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), Tensor):
                    inputs.append(reader.enter(node, node.name))
                continue
            name = str(spec.target)
            # What a run writes holds other numbers from the second run on.
            tensor = _tensor(exported, name) if name not in kept else None
            stored[name] = reader.enter(node, name, tensor)
        elif node.op == "call_function":
            reader.call(node)
    results = zip(signature.output_specs, _returned(exported.graph), strict=True)
    outputs: dict[str, fx.Node] = {}
    states: list[State] = []
    before = {one.name: one for one in (*inputs, *stored.values())}
    for spec, node in results:
        if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
            continue
        if spec.kind in _WRITES:
            name = str(spec.target)
            states.append(State(name, before[name], reader.values[node]))
        else:
            outputs[str(node.name)] = node
    return reader.flow(inputs, stored.values(), outputs, states)


_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def _tensor(exported: ExportedProgram, name: str) -> Tensor | None:
    found = {**exported.state_dict, **exported.constants}.get(name)
    return found if isinstance(found, Tensor) else None


def _returned(graph: fx.Graph) -> tuple[Any, ...]:
    returned = next(iter(reversed(graph.nodes))).args[0]
    return (returned,) if isinstance(returned, fx.Node) else tuple(returned)
