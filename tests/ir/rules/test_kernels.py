"""Rules of generated kernels: wrong ones are noticed, and what the right ones do not cover."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from planish.ir.flow.call import Call, Result
from planish.ir.flow.fx import read_program
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Opaque,
    contraction,
    everything,
    pointwise,
)
from planish.ir.program import IllFormed
from planish.ir.rules.aten import RULES, kernels
from support.kernel_calls import SAMPLES
from support.refute import Sample, program_of, refute

PRODUCT, SCALED, ROUTED, NORM, CODES = (
    f"planish.{name}"
    for name in ("weight_only", "scaled_product", "routed_product", "row_wise", "row_codes")
)


def calls(operator: str) -> list[Sample]:
    return [one for one in SAMPLES if one.operator == operator]


def _by_place(call: Call) -> Result:
    call.tensors()
    x = call["x"]
    return tuple(
        pointwise("copy", x)
        if one.shape == x.shape
        else contraction(one.shape, (x, (*range(len(one.shape)), "in")))
        for one in call.outputs
    )


def _of_x_alone(call: Call) -> Expression:
    call.tensors()
    return contraction(call.shape, (call["x"], (*range(len(call.shape) - 1), "in")))


def _of_no_choice(call: Call) -> Expression:
    """Rows of x by their places, whatever they chose."""
    call.tensors()
    x, (tokens, chosen, n) = call["x"], call.shape
    places = range(len(x.shape) - 1)
    return contraction((tokens, chosen, n), (x, (*places, "in")))


def _sorted(call: Call) -> Expression:
    """As if rows stayed where the kernel sorts them."""
    call.tensors()
    return everything("gather", call.shape, call["chosen"])


def _scales_of_nothing(call: Call) -> Result:
    return kernels.row_codes(call)[0], Fill(call.outputs[1].shape)


WRONG: dict[str, tuple[Callable[[Call], Result], str]] = {
    "a norm by element": (_by_place, NORM),
    "codes by element": (_by_place, CODES),
    "a product without its weight": (_of_x_alone, PRODUCT),
    "a product without the scales of rows": (_of_x_alone, SCALED),
    "rows without their choice": (_of_no_choice, ROUTED),
    "rows of others": (_sorted, ROUTED),
    "scales of nothing": (_scales_of_nothing, CODES),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_refuted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, operator = WRONG[name]
    monkeypatch.setitem(RULES, operator, rule)
    assert any(refute(one).wrong for one in calls(operator))


def why(sample: Sample, change: Callable[[list[Any]], None]) -> str:
    """Why a call is not covered after its arguments were changed behind its shapes' back."""
    program = program_of(sample)
    (node,) = (one for one in program.graph.nodes if one.op == "call_function")
    arguments = list(node.args)
    change(arguments)
    node.args = tuple(arguments)
    (expression, *_) = read_program(program).nodes[-1].expressions
    return expression.why if isinstance(expression, Opaque) else ""


def fields(**new: Any) -> Callable[[list[Any]], None]:
    def change(arguments: list[Any]) -> None:
        arguments[-2] = json.dumps({**json.loads(arguments[-2]), **new})

    return change


def inside(**new: Any) -> Callable[[list[Any]], None]:
    """Changes of the product that a routed one is made of."""

    def change(arguments: list[Any]) -> None:
        found = json.loads(arguments[-2])
        arguments[-2] = json.dumps({**found, "product": {**found["product"], **new}})

    return change


def no_json(arguments: list[Any]) -> None:
    arguments[-2] = "{"


def fewer(arguments: list[Any]) -> None:
    """Without the last operand, or the last tensor of the weight."""
    place = -3 if arguments[-3] else -4
    arguments[place] = list(arguments[place])[:-1]


CHANGES: list[tuple[str, int, Callable[[list[Any]], None], str]] = [
    (PRODUCT, 1, fields(), ""),
    (PRODUCT, 0, fields(k=16), r"x: shape \[4, 8\], specified \[4, 16\]"),
    (PRODUCT, 0, fields(n=8), "packed weight: shape"),
    (PRODUCT, 0, fields(transposed=True), "other than WeightOnly with the fields known here"),
    (PRODUCT, 0, fields(operator="Scaled"), "a specification other than WeightOnly"),
    (PRODUCT, 0, fields(epilogue={"bias": False}), "with the fields known here"),
    (PRODUCT, 0, fields(epilogue=None), "cannot be read"),
    (PRODUCT, 0, no_json, "cannot be read"),
    (PRODUCT, 0, fields(zeros=True), "a weight stored as 2 tensors; it should be 3"),
    (PRODUCT, 0, fewer, "a weight stored as 1 tensors"),
    (PRODUCT, 1, fewer, "2 operands, where the specification has 3"),
    (SCALED, 0, fields(k=3), "codes: shape"),
    (SCALED, 2, fields(k=3), "x: shape"),
    (SCALED, 2, fields(n=8), "packed weight: shape"),
    (SCALED, 2, fields(operator="WeightOnly"), "other than Scaled or GroupScaled"),
    (ROUTED, 0, fields(), ""),
    (ROUTED, 0, fields(experts=5), "packed weight: shape"),
    (ROUTED, 0, fields(chosen=3), "chosen: shape"),
    (ROUTED, 0, fields(shared=False), "x: shape"),
    (ROUTED, 0, fields(of="rows"), "other than Routed with the fields known here"),
    (ROUTED, 0, inside(k=16), "x: shape"),
    (ROUTED, 0, inside(operator="Scaled"), "with the fields known here"),
    (ROUTED, 0, inside(epilogue={"bias": False}), "with the fields known here"),
    (ROUTED, 0, inside(zeros=True), "a weight stored as 2 tensors; it should be 3"),
    (ROUTED, 1, fewer, "2 operands, where the specification has 3"),
    (ROUTED, 2, inside(n=5), "weight: shape"),
    (NORM, 0, fields(width=2), "x: shape"),
    (NORM, 1, fields(weight=False), "1 operands, where the specification has 0"),
    (NORM, 1, fields(norm="batch"), "a norm 'batch'"),
    (NORM, 2, fields(bias=False), "2 operands, where the specification has 1"),
    (CODES, 2, fields(width=1), "x: shape"),
]


@pytest.mark.parametrize(("operator", "number", "change", "message"), CHANGES)
def test_what_a_specification_does_not_fit_is_not_covered(
    operator: str, number: int, change: Callable[[list[Any]], None], message: str
) -> None:
    found = why(calls(operator)[number], change)
    assert re.search(message, found) if message else not found, found


def test_shapes_that_a_specification_does_not_have_are_refused_before() -> None:
    """Where a graph is made: a kernel would read memory that is not the tensor's."""
    (product, *_), (scaled, *_) = calls(PRODUCT), calls(SCALED)
    x, *rest = product.args
    with pytest.raises(IllFormed, match=r"x has the shape .*'9'.*says .*'8'"):
        program_of(dataclasses.replace(product, args=(torch.zeros(4, 9), *rest)))
    x, _, *rest = scaled.args
    with pytest.raises(IllFormed, match="row_scales has the shape"):
        program_of(dataclasses.replace(scaled, args=(x, torch.zeros(3), *rest)))
