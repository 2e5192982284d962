"""Slices of what was put together, against numpy."""

import random

import numpy as np

from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.vocabulary import Concat, Expression, Slice, Value
from planish.ir.isolation.parts import resolve


def evaluate(expression: Expression, values: dict[Value, np.ndarray]) -> np.ndarray:
    match expression:
        case Value():
            return values[expression]
        case Slice(value=value, start=int(start), size=int(size)):
            return evaluate(value, values)[start : start + size]
        case Concat(operands=operands):
            return np.concatenate([evaluate(one, values) for one in operands])
    raise AssertionError(expression)


def value(number: int, expression: Expression) -> Value:
    return Value(f"v{number}", expression.shape)


def grown(chance: random.Random, there: list[Value]) -> Expression:
    """A slice, or several values one after another, or a value with a stretch replaced."""
    one, other = chance.choice(there), chance.choice(there)
    size = one.shape[0]
    assert isinstance(size, int)
    start = chance.randint(0, size - 1)
    stop = chance.randint(start + 1, size)
    if chance.random() < 0.4:
        return Slice(one, 0, start, 1, stop - start)
    if chance.random() < 0.3:
        return Concat((one, other), 0)
    parts = (Slice(one, 0, 0, 1, start), other, Slice(one, 0, stop, 1, size - stop))
    return Concat(tuple(part for part in parts if part.shape[0] != 0), 0)


def test_parts_are_what_was_put_there() -> None:
    simpler = 0
    for seed in range(400):
        chance = random.Random(seed)
        sizes = [chance.randint(1, 4) for _ in range(3)]
        inputs = [Value(f"x{n}", (size,)) for n, size in enumerate(sizes)]
        values = {x: np.arange(100 * n, 100 * n + 4)[: sizes[n]] for n, x in enumerate(inputs)}
        there, nodes = list(inputs), []
        for number in range(8):
            expression = grown(chance, there)
            made = value(number, expression)
            nodes.append(Node(made.name, "op", (made,), (expression,)))
            values[made] = evaluate(expression, values)
            there.append(made)
        resolved = resolve(Flow(tuple(inputs), (), tuple(nodes), {}))
        for before, after in zip(nodes, resolved.nodes, strict=True):
            (one,), (output,) = after.expressions, before.outputs
            assert np.array_equal(evaluate(one, values), values[output])
            simpler += one is not before.expressions[0]
    assert simpler > 100
