"""Reading one torch.fx graph, node by node."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.flow import higher_order
from planish.ir.flow.call import NotCovered, Rule, apply
from planish.ir.flow.fx_call import FxCall, Sizes
from planish.ir.flow.graph import Flow, Node, State
from planish.ir.flow.known import Known, Numbers, numbers, of
from planish.ir.flow.memory import Memory, written
from planish.ir.flow.polynomial import (
    Polynomial,
    data_decides,
)
from planish.ir.flow.vocabulary import Expression, Fill, Opaque, Value, everything
from planish.ir.operators import HigherOrderOperator, is_operator
from planish.ir.rules.aten import LEARN, RULES, WRITES

_FLOATS = 64
"""Of stored tensors with no more floating-point numbers than this, each is kept."""

_FOLLOWED = (torch.int64, torch.int32, torch.bool)
"""The dtypes whose values may be known: narrower ones wrap, floating-point ones round."""


class Reader:
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
        self.floats: dict[Value, tuple[float, ...]] = {}
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
        if tensor is not None and steady and _is_small(tensor):
            self.floats[value] = tuple(tensor.double().flatten().tolist())
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
            floats=self.floats,
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
        inner = Reader(self.sizes, graph.graph, graph, self.declared)
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
        results = enumerate(returned(graph.graph))
        return inner.flow(inputs, stored, {str(number): node for number, node in results})

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
        call = FxCall(node, outputs, self.resolve, self.known)
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

    def _written(self, call: FxCall) -> dict[fx.Node, tuple[Expression, ...]]:
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
        self, call: FxCall, outputs: tuple[Value, ...], expressions: tuple[Expression, ...]
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


def _is_small(tensor: Tensor) -> bool:
    """Whether a stored tensor holds floating-point numbers, and few of them."""
    return tensor.is_floating_point() and not tensor.is_meta and tensor.numel() <= _FLOATS


def stored_numbers(tensor: Tensor) -> Known | None:
    """The elements of a small stored tensor of integers or truth values."""
    if tensor.dtype not in _FOLLOWED or tensor.numel() > 4096 or tensor.is_meta:
        return None
    return numbers(tensor.tolist(), tuple(tensor.shape))


def returned(graph: fx.Graph) -> tuple[Any, ...]:
    """What a graph returns."""
    result = next(iter(reversed(graph.nodes))).args[0]
    return (result,) if isinstance(result, fx.Node) else tuple(result)
