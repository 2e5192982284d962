"""Wrong rules of ONNX, put in on purpose: comparisons with runtimes have to notice each.

A wrong rule is the right one whose answer was changed: something that it says is read is forgotten,
or looked for in another place.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from planish.ir.flow.call import Result
from planish.ir.flow.vocabulary import (
    Concat,
    Diagonal,
    Expression,
    Fill,
    Opaque,
    Operand,
    Reads,
    Reshape,
    Slice,
    permuted,
)
from planish.ir.isolation.dependence import NOTHING, Dependence
from planish.ir.isolation.interpret import Interpreter
from planish.ir.rules import onnx as table
from planish.ir.rules.onnx import window
from planish.ir.rules.onnx.call import OnnxCall, OnnxRule
from support import onnx_calls, random_onnx_programs
from support.fuzz import judged
from support.onnx_oracle import Case, cases, compare, fixed
from support.random_onnx import Move
from support.random_onnx_moves import binary, transpose
from support.random_onnx_nested import branch, loop
from support.random_onnx_sums import REDUCTIONS, mixed_along, reduce, resized, running

Change = Callable[[Expression], Expression]


def changed(one: Expression, change: Change) -> Expression:
    """An expression with a change made to it and to all that it is made of."""
    match one:
        case Reads():
            operands = (replace(o, value=changed(o.value, change)) for o in one.operands)
            one = replace(one, operands=tuple(operands))
        case Reshape() | Slice() | Diagonal():
            one = replace(one, value=changed(one.value, change))
        case Concat():
            one = replace(one, operands=tuple(changed(o, change) for o in one.operands))
    return change(one)


def unmixed(one: Expression) -> Expression:
    return replace(one, mixed=frozenset()) if isinstance(one, Reads) else one


def alone(one: Expression) -> Expression:
    """Only the first operand is read."""
    return replace(one, operands=one.operands[:1]) if isinstance(one, Reads) else one


def in_place(one: Expression) -> Expression:
    """What is read whole is forgotten."""
    if not isinstance(one, Reads):
        return one
    return replace(one, operands=tuple(o for o in one.operands if not _whole(o)))


def _whole(operand: Operand) -> bool:
    return any(isinstance(tag, str) for tag in operand.tags)


def from_the_start(one: Expression) -> Expression:
    return replace(one, start=0) if isinstance(one, Slice) else one


def forwards(one: Expression) -> Expression:
    return replace(one, start=0, step=1) if isinstance(one, Slice) else one


def backwards(one: Expression) -> Expression:
    return replace(one, operands=one.operands[::-1]) if isinstance(one, Concat) else one


def turned(one: Expression) -> Expression:
    """Dimensions in the reverse order before they are cut anew."""
    if not isinstance(one, Reshape):
        return one
    order = list(reversed(range(len(one.value.shape))))
    return replace(one, value=permuted(one.value, order))


def untransposed(one: Expression) -> Expression:
    """A permutation the other way round."""
    if not isinstance(one, Reads) or len(one.operands) != 1 or _whole(one.operands[0]):
        return one
    (operand,) = one.operands
    back = tuple(operand.tags.index(tag) for tag in range(len(operand.tags)))
    return replace(one, operands=(replace(operand, tags=back),))


def known_size(one: Expression) -> Expression:
    """A size that data decide, taken for a constant."""
    return Fill(one.shape) if isinstance(one, Opaque) else one


WRONG: dict[str, tuple[Change, str]] = {
    "elements of a softmax by themselves": (unmixed, "Softmax LogSoftmax Hardmax"),
    "a running sum by element": (unmixed, "CumSum"),
    "a norm by element": (unmixed, "LayerNormalization LpNormalization"),
    "steps of time by themselves": (unmixed, "LSTM GRU RNN"),
    "the largest of nothing": (in_place, "TopK"),
    "a product of one matrix": (alone, "MatMul Gemm MatMulInteger"),
    "a choice without its mask": (alone, "Where"),
    "writes without what is written": (alone, "ScatterElements"),
    "attention to oneself": (alone, "Attention"),
    "a sum of nothing": (in_place, "ReduceSum ReduceMax ArgMax GlobalAveragePool"),
    "windows of nothing": (in_place, "Conv ConvTranspose MaxPool"),
    "a lookup of nothing": (in_place, "Gather GatherElements"),
    "a slice from the first element": (from_the_start, "Slice Split"),
    "a slice in the other direction": (forwards, "Slice"),
    "parts in another order": (backwards, "Concat"),
    "a reshape by columns": (turned, "Reshape Flatten"),
    "a permutation the other way": (untransposed, "Transpose"),
    "a size that data decide as a constant": (known_size, "NonZero"),
}


@cache
def found(operator: str) -> list[Case]:
    """The node tests and calls of an operator, with its integers given and stored."""
    made = [*cases(), *onnx_calls.standard(), *onnx_calls.alike()]
    several = [case for case in made if case.operators == {("", operator)}]
    assert several
    return [fixed(case, stored) for case in several for stored in (False, True)]


def refuted(operator: str) -> bool:
    return any(compare(case, 0, 9).wrong for case in found(operator))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_refuted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, operators = WRONG[name]
    for operator in operators.split():
        right = table.RULES["", operator]
        assert not refuted(operator)
        monkeypatch.setitem(table.RULES, ("", operator), wrong(right, change))
        assert refuted(operator), operator


def wrong(right: OnnxRule, change: Change) -> OnnxRule:
    def rule(call: OnnxCall) -> Result:
        good = right(call)
        call.tensors()
        if isinstance(good, Expression):
            return changed(good, change)
        return tuple(changed(one, change) for one in good)

    return rule


def test_random_models_refute_interpolation_by_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(moved: set[int], rank: int) -> set[int]:  # noqa: ARG001
        return moved

    monkeypatch.setattr(window, "_beside", only)
    assert judged(random_onnx_programs.programs(0, moves=[resized]), 20).wrong


def test_random_models_refute_branches_that_nobody_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(self: Interpreter, predicate: Dependence, what: str) -> Dependence:  # noqa: ARG001
        return NOTHING

    monkeypatch.setattr(Interpreter, "decided", nothing)
    assert judged(random_onnx_programs.programs(0, moves=[branch, loop]), 40).wrong


@pytest.mark.parametrize("move", [running, reduce, mixed_along])
def test_random_models_refute_wrong_rules(move: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    for operator in ("CumSum", *REDUCTIONS.split(), "Softmax"):
        right = wrong(wrong(table.RULES["", operator], unmixed), in_place)
        monkeypatch.setitem(table.RULES, ("", operator), right)
    assert judged(random_onnx_programs.programs(0, moves=[move, binary, transpose]), 20).wrong
