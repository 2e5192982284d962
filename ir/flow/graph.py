"""A graph as analyses see it: nodes whose outputs are expressions, wherever it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planish.ir.flow.known import Known
from planish.ir.flow.vocabulary import Expression, Value


@dataclass(frozen=True, eq=False)
class Node:
    """One operator's call.

    Attributes:
        name: unique in its graph.
        operator: as people write it: `aten.softmax.int`, `ai.onnx::Softmax@13`.
        outputs: the values it defines.
        expressions: what each output reads.
        where: the module or source line it came from, if known.
        controls: numbers on the host that the call is given, as sizes or indices.
    """

    name: str
    operator: str
    outputs: tuple[Value, ...]
    expressions: tuple[Expression, ...]
    where: str = ""
    controls: tuple[Value, ...] = ()


@dataclass(frozen=True, eq=False)
class State:
    """What one call leaves behind for the next.

    Attributes:
        name: of the buffer or input that is written.
        before: its value when a call begins.
        after: its value when a call ends.
    """

    name: str
    before: Value
    after: Value


@dataclass(frozen=True, eq=False)
class Flow:
    """A graph, each of whose nodes says what it reads.

    Attributes:
        inputs: given at each run.
        stored: tensors that are part of the model.
        nodes: in an order of execution.
        outputs: by name; the same value may occur twice.
        states: buffers and inputs that a run writes.
        known: what is known of values without running anything.
        unknown_operators: how often each operator without a rule occurs, nested graphs included.
        captured: values of enclosing graphs that this one reads.
        assertions: how many checks of values can stop a run.
        defaults: inputs whose values the file stores, which count as stored.
        stops: where runs of the model stop, so that this graph leaves them out.
        floats: the elements of very small stored tensors of floating-point numbers.
    """

    inputs: tuple[Value, ...]
    stored: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: Mapping[str, Value]
    states: tuple[State, ...] = ()
    known: Mapping[Value, Known] = field(default_factory=dict)
    unknown_operators: Mapping[str, int] = field(default_factory=dict)
    captured: tuple[Value, ...] = ()
    assertions: int = 0
    defaults: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    floats: Mapping[Value, tuple[float, ...]] = field(default_factory=dict)
