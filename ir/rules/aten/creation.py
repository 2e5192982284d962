"""Operators that make tensors out of nothing: constants, random numbers, raw memory."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from planish.ir.flow.call import Call, Learn, Rule
from planish.ir.flow.known import LARGEST, Counting, Known, Numbers, numbers
from planish.ir.flow.polynomial import Polynomial
from planish.ir.flow.vocabulary import Expression, Fill

CONTENTS = {
    "constant": """
        full.default full_like.default new_full.default new_ones.default new_zeros.default
        ones.default ones_like.default scalar_tensor.default zeros.default zeros_like.default
        fill.Scalar
    """,
    "by place": """
        arange.default arange.start arange.start_step eye.default eye.m linspace.default
        logspace.default tril_indices.default triu_indices.default hann_window.default
        hamming_window.default hann_window.periodic
    """,
    "random": """
        rand.default rand_like.default randint.default randint.low randint_like.default
        randint_like.low_dtype randn.default randn_like.default randperm.default
    """,
    "uninitialized": """
        empty.memory_format empty_like.default empty_strided.default empty_permuted.default
        new_empty.default new_empty_strided.default
    """,
}


def _rule(content: str) -> Rule:
    def rule(call: Call) -> Expression:
        call.tensors()  # only the shape and the dtype of what they are like
        return Fill(call.shape, content, _number(call) if content == "constant" else None)

    return rule


def _number(call: Call) -> float | None:
    """What all elements of a constant are."""
    for name in ("zeros", "ones"):
        if name in call.operator:
            return float(name == "ones")
    given = next(call[name] for name in ("fill_value", "value", "s") if name in call)
    return float(given) if isinstance(given, bool | int | float) else None


RULES: dict[str, Rule] = {
    f"aten.{name}": _rule(content)
    for content, operators in CONTENTS.items()
    for name in operators.split()
}


def _arange(call: Call) -> Known | None:
    name = call.operator
    start = 0 if name == "aten.arange.default" else call["start"]
    step = call["step"] if name == "aten.arange.start_step" else 1
    if not all(isinstance(one, int | Polynomial) for one in (start, step, call["end"])):
        return None  # fractions, which are rounded
    return Counting(start, (step,))


def _full(call: Call) -> Known | None:
    return _filled(call, call["fill_value"])


def _filled(call: Call, value: Any) -> Known | None:
    """What is known of a tensor that has one value everywhere."""
    if call.outputs[0].dtype == torch.bool and isinstance(value, int):
        return numbers([bool(value)] * prod(_sizes(call)), call.shape) if _sizes(call) else None
    if not isinstance(value, int | Polynomial) or isinstance(value, bool):
        return None
    return Counting(value, (0,) * len(call.shape)) if call.shape else numbers(value)


def _sizes(call: Call) -> list[int]:
    """The shape, if it is small and made of numbers; else nothing."""
    sizes = [size for size in call.shape if isinstance(size, int)]
    return sizes if len(sizes) == len(call.shape) and prod(sizes) <= LARGEST else []


def _scalar(call: Call) -> Numbers | None:
    value = call["s"]
    return numbers(value) if isinstance(value, int | Polynomial) else None


def _same(value: int) -> Learn:
    return lambda call: _filled(call, value)


LEARN: dict[str, Learn] = {
    "aten.arange.default": _arange,
    "aten.arange.start": _arange,
    "aten.arange.start_step": _arange,
    "aten.full.default": _full,
    "aten.full_like.default": _full,
    "aten.new_full.default": _full,
    "aten.scalar_tensor.default": _scalar,
} | {
    f"aten.{name}.default": _same(value)
    for name, value in (("zeros", 0), ("ones", 1), ("zeros_like", 0), ("ones_like", 1))
}
