"""Operators of torch that take graphs: branches, loops, scans, wrappers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from planish.ir.flow.call import NotCovered
from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.vocabulary import Branch, Expression, Fill, Loop, Value

WRAPPERS = frozenset(
    {
        "hints_wrapper",
        "invoke_subgraph",
        "tag_activation_checkpoint",
        "wrap",
        "wrap_activation_checkpoint",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    }
)
"""Operators that run one graph once, as it is."""


def read(
    name: str,
    args: Sequence[Any],
    outputs: Sequence[Value],
    resolve: Callable[[Any], Any],
    nested: Callable[[str], Flow],
) -> tuple[Expression, ...]:
    """What the outputs of a call read.

    Args:
        name: of the operator.
        args: as in the graph.
        outputs: the values that the call defines.
        resolve: gives the expression of an argument.
        nested: gives the flow of a nested graph, by its name in the module.

    Raises:
        NotCovered: if the operator is none of those known here.
    """
    graphs = [nested(str(one.target)) for one in args if _is_graph(one)]
    if name == "cond":
        predicate = _expression(resolve(args[0]))
        given = _expressions(resolve(args[3]) if len(args) > 3 else ())
        return _branches(outputs, predicate, tuple(graphs), given)
    if name in WRAPPERS and len(graphs) == 1:
        after = next(place for place, one in enumerate(args) if _is_graph(one)) + 1
        rest = [one for one in args[after:] if not isinstance(one, str)]
        return _branches(outputs, Fill(()), tuple(graphs), _expressions(resolve(rest)))
    loop: dict[str, Any]
    if name == "while_loop":
        condition, body = graphs
        joint, place = _with_condition(condition, body)
        carried, fixed = (_expressions(resolve(one)) for one in args[2:4])
        loop = {"body": joint, "carried": carried, "fixed": fixed, "condition": place}
    elif name == "scan":
        init, scanned, fixed = (_expressions(resolve(one)) for one in args[1:4])
        loop = {"body": graphs[0], "carried": init, "scanned": scanned, "fixed": fixed}
    elif name == "map_impl":
        scanned, fixed = (_expressions(resolve(one)) for one in args[1:3])
        loop = {"body": graphs[0], "carried": (), "scanned": scanned, "fixed": fixed}
    else:
        raise NotCovered(f"there is no rule for {name}")
    return tuple(Loop(one.shape, index=number, **loop) for number, one in enumerate(outputs))


def _is_graph(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _expression(resolved: Any) -> Expression:
    """An operand; a number on the host reads nothing itself, its node is a control."""
    return resolved if isinstance(resolved, Expression) else Fill(())


def _expressions(resolved: Sequence[Any]) -> tuple[Expression, ...]:
    return tuple(_expression(one) for one in resolved)


def _branches(
    outputs: Sequence[Value],
    predicate: Expression,
    bodies: tuple[Flow, ...],
    given: tuple[Expression, ...],
) -> tuple[Expression, ...]:
    return tuple(
        Branch(one.shape, predicate, bodies, number, given) for number, one in enumerate(outputs)
    )


def _with_condition(condition: Flow, body: Flow) -> tuple[Flow, int]:
    """One iteration of `body` that also gives the condition, and where it gives it."""
    same = zip(condition.inputs, body.inputs, strict=True)
    given = tuple(
        Node(f"carried {number}", "alias", (inner,), (outer,))
        for number, (inner, outer) in enumerate(same)
    )
    (decision,) = condition.outputs.values()
    outputs = {**body.outputs, "condition": decision}
    nodes = (*given, *condition.nodes, *body.nodes)
    return Flow(body.inputs, (), nodes, outputs), len(body.outputs)
