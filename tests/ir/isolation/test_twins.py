"""Operators that are said to treat rows alike, tried on rows in another order."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from planish.ir import ops
from planish.ir.flow.laws import Arrangement
from planish.ir.flow.onnx import read_model
from planish.ir.flow.vocabulary import Expression, Fill, Value
from planish.ir.isolation.twins import Apart, Place, Twins
from planish.ir.rules.aten import creation, pointwise
from support import indexing_calls, movement_calls, onnx_calls, product_calls, reduction_calls
from support.onnx_oracle import Case, cases, fixed, runner
from support.refute import Sample, evaluate, flow_of, tensors_of
from support.schema_calls import generated

assert ops  # registers planish's own operators

SAMPLES: dict[str, list[Sample]] = {
    "creation": [one for name in creation.RULES for one in generated(name)],
    "pointwise": [one for name in pointwise.RULES for one in generated(name)],
    "indexing": indexing_calls.SAMPLES,
    "movement": movement_calls.SAMPLES,
    "product": product_calls.SAMPLES,
    "reduction": reduction_calls.SAMPLES,
}


def test_rows_of_onnx_too() -> None:
    tried = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in [*cases(), *onnx_calls.standard(), *onnx_calls.microsoft()]:
            tried += _tried(fixed(case, all_integers=False))
    assert tried > 1000


def _tried(case: Case) -> int:
    """How often rows in another order were compared."""
    flow = read_model(case.model)
    given = [case.inputs.get(value.name) for value in flow.inputs]
    if len(flow.nodes) != 1 or not all(isinstance(one, np.ndarray) for one in given):
        return 0
    arrays = [np.asarray(one) for one in given]
    if not any(isinstance(value.shape, tuple) and value.shape for value in flow.inputs):
        return 0
    (node,) = flow.nodes
    results = [one.name for one in case.model.graph.output]
    found = [
        (chosen, results.index(output.name), place.dim)
        for chosen in arranged(arrays)
        for output, expression in zip(node.outputs, node.expressions, strict=True)
        if output.name in results
        and (place := _place(_places(flow.inputs, chosen), expression)) is not None
    ]
    if not found:
        return 0
    try:
        run = runner(case.model)
        before = run(case.inputs)
    except Exception:  # neither runtime has the operator
        return 0
    for chosen, number, dim in found:
        order = np.roll(np.arange(before[number].shape[dim])[::-1], 1)
        pairs = zip(flow.inputs, arrays, chosen, strict=True)
        other = {v.name: x if d is None else x.take(order, d) for v, x, d in pairs}
        try:
            after = run(case.inputs | other)[number]
        except Exception:  # it refuses these values
            continue
        expected = before[number].take(order, dim)
        same = after.dtype.kind not in "fiub" or np.allclose(
            after.astype(float), expected.astype(float), rtol=1e-4, atol=1e-5, equal_nan=True
        )
        assert same, f"{case.name}: {chosen} to {dim} of result {number}"
    return len(found)


def _place(twins: Twins, expression: Expression) -> Place | None:
    try:
        return twins.place(expression)
    except Apart:
        return None


@pytest.mark.parametrize("family", SAMPLES)
def test_rows_that_are_treated_alike_follow_their_order(family: str) -> None:
    tried = 0
    for sample in SAMPLES[family]:
        flow = flow_of(sample)
        inputs, _ = tensors_of(sample)
        before = evaluate(sample, inputs, inputs)
        for chosen in arranged(inputs):
            places = _places(flow.inputs, chosen)
            for number, expression in enumerate(flow.nodes[-1].expressions[: len(before)]):
                place = _place(places, expression)
                if place is not None:
                    tried += 1
                    _compare(sample, inputs, chosen, before[number], number, place.dim)
    assert family == "creation" or tried > 10


def arranged(inputs: Sequence[Any]) -> Iterator[list[int | None]]:
    """Which dimension of each input is in an order of its own: all have the same size."""
    options = [[None, *range(one.ndim)] for one in inputs]
    for chosen in list(product(*options))[:200]:
        sizes = {x.shape[d] for x, d in zip(inputs, chosen, strict=True) if d is not None}
        if len(sizes) == 1 and sizes.pop() > 1:
            yield list(chosen)


def _places(values: tuple[Value, ...], chosen: list[int | None]) -> Twins:
    twins = Twins({})
    size = next(v.shape[d] for v, d in zip(values, chosen, strict=True) if d is not None)
    arrangement = Arrangement((size,), Fill((size,)))
    for value, dim in zip(values, chosen, strict=True):
        if dim is not None:
            twins.define(value, Place(arrangement, dim), value)
    return twins


def _compare(
    sample: Sample, inputs: list[Tensor], chosen: list[Any], before: Tensor, number: int, dim: int
) -> None:
    order = torch.randperm(before.shape[dim], generator=torch.Generator().manual_seed(1))
    if torch.equal(order, torch.arange(len(order))):
        order = order.flip(0)
    given = [
        x if d is None else x.index_select(d, order) for x, d in zip(inputs, chosen, strict=True)
    ]
    try:
        after = evaluate(sample, inputs, given)[number]
    except (RuntimeError, IndexError):
        return  # it refuses these values
    expected = before.index_select(dim, order)
    same = torch.allclose(after, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert same, f"{sample.operator} of {[tuple(x.shape) for x in inputs]}, {chosen} to {dim}"
