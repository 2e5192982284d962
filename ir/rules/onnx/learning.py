"""What is known of results: arithmetic on sizes and indices that models compute as they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from planish.ir.flow.known import LARGEST, Counting, Known, Numbers, combined, numbers
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import Expression
from planish.ir.rules.onnx.call import OnnxCall, OnnxLearn, plain
from planish.ir.rules.onnx.pointwise import EXACT
from planish.ir.rules.onnx.sizes import at_least, joined_shape, least


def listed(call: OnnxCall, value: Expression) -> np.ndarray | None:
    """Every element of a value, if all are known and their number is."""
    known = call.known(value)
    if isinstance(known, Numbers):
        return known.array
    sizes = [size for size in value.shape if isinstance(size, int)]
    if not isinstance(known, Counting) or len(sizes) != len(value.shape):
        return None
    if np.prod([max(size, 1) for size in sizes], dtype=object) > LARGEST:
        return None
    array = np.empty(sizes, dtype=object)
    for place in np.ndindex(*sizes):
        number: Count = known.base
        for step, index in zip(known.steps, place, strict=True):
            number = number + step * index
        array[place] = number
    return array


def _arithmetic(name: str) -> OnnxLearn:
    def learn(call: OnnxCall) -> Known | None:
        left, right = call.input(0), call.input(1)
        shape = joined_shape([left.shape, right.shape])
        # The remainder of fmod has another sign, which does not matter: neither number may be
        # negative.
        found = combined(name, call.known(left), call.known(right), shape)
        return found if found is not None else _exactly(name, call, left, right)

    return learn


def _exactly(name: str, call: OnnxCall, left: Expression, right: Expression) -> Known | None:
    """Element by element, where that says more than whole tensors do."""
    if name not in _DECIDED:
        return None
    return _each(_DECIDED[name], listed(call, left), listed(call, right))


def _each(
    function: Callable[[Any, Any], Any], left: np.ndarray | None, right: np.ndarray | None
) -> Known | None:
    """A function of each two elements, unless it is not certain of one."""
    if left is None or right is None:
        return None
    left, right = np.broadcast_arrays(left, right)
    result = np.empty(left.shape, dtype=object)
    for place in np.ndindex(left.shape):
        result[place] = function(left[place], right[place])
        if result[place] is None:
            return None
    return numbers(result)


def _equal(one: Count, two: Count) -> bool | None:
    """Whether two sizes are equal, None where it depends on the symbols."""
    if one == two:
        return True
    low, high = least(one - two), least(two - one)
    return False if (low or 0) > 0 or (high or 0) > 0 else None


def _less(one: Count, two: Count) -> bool | None:
    if at_least(two, one + 1):
        return True
    return False if at_least(one, two) else None


def _opposite(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _larger(one: Count, two: Count) -> Count | None:
    return one if at_least(one, two) else two if at_least(two, one) else None


def _smaller(one: Count, two: Count) -> Count | None:
    return two if at_least(one, two) else one if at_least(two, one) else None


def _divided(one: Count, two: Count) -> Count | None:
    """A division without remainder, or of whole numbers that are not negative."""
    if isinstance(one, int) and isinstance(two, int):
        return one // two if one >= 0 and two > 0 else None
    if isinstance(two, int) and two > 0 and isinstance(one, Polynomial):
        if all(factor % two == 0 for _, factor in one.terms):
            return Polynomial({monomial: factor // two for monomial, factor in one.terms})
        return Polynomial.symbol(f"floor(({one})/{two})") if at_least(one, 0) else None
    return None


_DECIDED: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda one, two: one + two,
    "sub": lambda one, two: one - two,
    "mul": lambda one, two: one * two,
    "floordiv": _divided,
    "eq": _equal,
    "lt": _less,
    "gt": lambda one, two: _less(two, one),
    "le": lambda one, two: _opposite(_less(two, one)),
    "ge": lambda one, two: _opposite(_less(one, two)),
}


def _extreme(choose: Callable[[Count, Count], Count | None]) -> OnnxLearn:
    def learn(call: OnnxCall) -> Known | None:
        first, *rest = call.inputs()
        result = listed(call, first)
        for value in rest:
            known = _each(choose, result, listed(call, value))
            if not isinstance(known, Numbers):
                return None
            result = known.array
        return None if result is None else numbers(result)

    return learn


def _cast(call: OnnxCall) -> Known | None:
    """Between truth values and integers; between integers the copy says it."""
    array = listed(call, call.input(0))
    new = call.outputs[0].dtype
    if array is None or any(isinstance(x, Polynomial) for x in array.flat):
        return None
    old = getattr(call.input(0), "dtype", None)
    if new == "BOOL" and old in EXACT:
        return numbers([bool(x) for x in array.flat], array.shape)
    if new in EXACT and old == "BOOL":
        return numbers([int(x) for x in array.flat], array.shape)
    return None


def _neg(call: OnnxCall) -> Known | None:
    known = call.known(call.input(0))
    return combined("mul", known, numbers(-1), call.input(0).shape)


def _not(call: OnnxCall) -> Known | None:
    array = listed(call, call.input(0))
    if array is None or not all(isinstance(x, bool) for x in array.flat):
        return None
    return numbers([not x for x in array.flat], array.shape)


def _where(call: OnnxCall) -> Known | None:
    """A selection among numbers, by a condition that is known."""
    chosen = listed(call, call.input(0))
    if chosen is None:
        return None
    left, right = (listed(call, call.input(place)) for place in (1, 2))
    if left is None or right is None:
        return None
    chosen, left, right = np.broadcast_arrays(chosen, left, right)
    result = np.empty(chosen.shape, dtype=object)
    for place in np.ndindex(chosen.shape):
        result[place] = left[place] if chosen[place] else right[place]
    return numbers(result)


def _gather(call: OnnxCall) -> Known | None:
    """Numbers picked by numbers, as models do with shapes."""
    array, index = listed(call, call.input(0)), listed(call, call.input(1))
    if array is None or index is None:
        return None
    axis = call.place(call.attribute("axis", 0), array.ndim)
    places = np.array([plain(one) for one in index.flat], dtype=np.int64).reshape(index.shape)
    if not (np.all(places >= -array.shape[axis]) and np.all(places < array.shape[axis])):
        return None
    return numbers(np.take(array, places, axis=axis))


_ARITHMETIC = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "floordiv": "Div",
    "mod": "Mod",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
}

LEARN: dict[tuple[str, str], OnnxLearn] = {
    ("", operator): _arithmetic(name) for name, operator in _ARITHMETIC.items()
} | {
    ("", "Max"): _extreme(_larger),
    ("", "Min"): _extreme(_smaller),
    ("", "Cast"): _cast,
    ("", "Neg"): _neg,
    ("", "Not"): _not,
    ("", "Where"): _where,
    ("", "Gather"): _gather,
}
