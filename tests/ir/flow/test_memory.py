"""Calls that write in place: running statistics, and graphs that were not decomposed."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from planish.ir.flow.fx import read_exported
from planish.ir.flow.memory import Memory
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import Analysis

aten: Any = torch.ops.aten


class Kept(nn.Module):
    """A function of images [B, 4, H, W] and of buffers that it may write."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, function: Callable[["Kept", Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def exported(function: Callable[[Kept, Tensor], Any]) -> ExportedProgram:
    shapes = {"x": {0: torch.export.Dim.AUTO}}
    return torch.export.export(Kept(function), (torch.randn(3, 4, 5, 5),), dynamic_shapes=shapes)


def audited(program: ExportedProgram) -> Analysis:
    return analyse(lambda ties: read_exported(program, ties), Labels())


def statistics(m: Kept) -> tuple[Any, ...]:
    return None, None, m.mean, m.variance


NORMS: dict[str, Callable[[Kept, Tensor], Any]] = {
    "native": lambda m, x: aten.native_batch_norm(x, *statistics(m), True, 0.1, 1e-5)[0],
    "marked": lambda m, x: aten._native_batch_norm_legit(x, *statistics(m), True, 0.1, 1e-5)[0],
    "plain": lambda m, x: aten.batch_norm(x, *statistics(m), True, 0.1, 1e-5, False),
    "instances": lambda m, x: aten.instance_norm(x, *statistics(m), True, 0.1, 1e-5, False),
    "result unused": lambda m, x: (aten.native_batch_norm(x, *statistics(m), True, 0.1, 1e-5), x)[
        1
    ],
}


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_running_statistics_are_a_state(name: str, decomposed: bool) -> None:
    program = exported(NORMS[name])
    found = audited(program.run_decompositions({}) if decomposed else program)
    assert {"state mean", "state variance"} <= {
        out for one in found.findings if one.kind == "state" for out in one.outputs
    }
    own = name in ("instances", "result unused")
    assert found.outputs[0].verdict == ("isolated" if own else "leaks")


def test_what_is_written_is_what_is_read_next() -> None:
    def normalized_then_read(m: Kept, x: Tensor) -> Tensor:
        aten.native_batch_norm(x, *statistics(m), True, 0.1, 1e-5)
        return x + m.mean[:, None, None]

    assert audited(exported(normalized_then_read)).outputs[0].verdict == "leaks"


def test_evaluation_writes_nothing() -> None:
    found = audited(
        exported(lambda m, x: aten.batch_norm(x, *statistics(m), False, 0.1, 1e-5, False))
    )
    assert found.verdict == "isolated"
    assert len(found.outputs) == 1


def test_a_view_shows_what_was_written() -> None:
    def through_a_view(_: Kept, x: Tensor) -> Tensor:
        own = x * 1
        part = own[:, :2]
        part.copy_(x.flip(0)[:, :2])
        return own

    found = audited(exported(through_a_view))
    assert found.verdict == "unproven"
    assert found.unknown_operators == {"aten.copy_.default": 1}


def test_a_part_of_several_shows_what_was_written() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    several = graph.call_function(aten.split.Tensor, (x, 2))
    first = graph.call_function(operator.getitem, (several, 0))
    graph.call_function(aten.add_.Tensor, (first, 1))
    memory = Memory(graph)
    assert memory.family(x) == {x, several, first, *first.users}
    assert all(map(memory.changes, memory.family(x)))


def test_what_is_written_is_not_taken_as_stored() -> None:
    """The numbers of a counter are known in the first run alone."""

    def counted(m: Kept, x: Tensor) -> Tensor:
        picked = x[:, m.count]
        m.count.add_(1)
        return picked

    program = exported(counted)
    node = next(one for one in program.graph.nodes if one.name == "b_count")
    assert Memory(program.graph).changes(node)
    flow = read_exported(program)
    assert not any(value.name == "count" for value in flow.known)
    assert [state.name for state in flow.states] == ["count"]


def test_a_nested_graph_that_writes_is_not_understood() -> None:
    def updated(m: Kept, x: Tensor) -> Tensor:
        def either(x: Tensor, mean: Tensor, variance: Tensor) -> Any:
            return aten.native_batch_norm(x, None, None, mean, variance, True, 0.1, 1e-5)[0]

        torch.cond(x.shape[0] > 2, either, lambda x, *_: x * 1, (x, m.mean, m.variance))
        return x * 1

    program = exported(updated)
    if any(node.target is torch.ops.higher_order.cond for node in program.graph.nodes):
        assert audited(program).verdict == "unproven"
