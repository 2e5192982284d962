"""Operators each of whose elements reads the elements at its own place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from planish.ir.flow.call import Call, Learn, Result, Rule
from planish.ir.flow.known import Known, Numbers, combined, numbers, one_number
from planish.ir.flow.laws import ByPlace, Cast, Computed, Law, Quotient, Triangle
from planish.ir.flow.polynomial import Polynomial
from planish.ir.flow.vocabulary import Expression, Reshape, pointwise
from planish.ir.operators import schema

KINDS = {
    "linear": "neg negative positive deg2rad rad2deg conj_physical",
    "add": "add sub subtract rsub",
    "hadamard": "mul multiply",
    "ratio": "true_divide div divide",
    "homogeneous": "relu leaky_relu abs maximum minimum fmax fmin _prelu_kernel",
    "square": "square pow",
    "equal": "eq ne not_equal",
    "nonlinear": """
        acos acosh addcdiv addcmul angle asin asinh atan atan2 atanh arctan2
        bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
        __and__ __or__ __xor__ __lshift__ __rshift__
        ceil celu clamp clamp_max clamp_min clip copysign cos cosh digamma elu
        erf erfc erfinv exp exp2 expm1 float_power floor floor_divide fmod frac gcd ge gelu
        greater greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma
        igammac isclose isfinite isinf isnan isneginf isposinf isreal lcm ldexp le lerp less
        less_equal lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and
        logical_not logical_or logical_xor logit lt masked_fill mish mvlgamma nan_to_num
        nextafter polygamma reciprocal relu6 remainder round rsqrt selu sgn
        sigmoid sign signbit silu sin sinc sinh softplus softshrink special_bessel_j0
        special_bessel_j1 special_entr special_erfcx special_i0e special_i1 special_i1e
        special_log_ndtr special_ndtri special_xlog1py special_zeta sqrt tan tanh
        threshold trunc fix xlogy fake_quantize_per_tensor_affine
    """,
}
"""Packets by what they compute; the ranges of a fake quantization are arguments."""

_PAIR = ("self", "other")

FUNCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, _PAIR) for name in ("add", "sub", "mul", "div", "eq", "ne")},
    **{name: (name, _PAIR) for name in ("lt", "le", "gt", "ge")},
    **dict.fromkeys(("subtract",), ("sub", _PAIR)),
    **dict.fromkeys(("multiply",), ("mul", _PAIR)),
    **dict.fromkeys(("divide", "true_divide"), ("div", _PAIR)),
    "rsub": ("sub", ("other", "self")),
    "neg": ("neg", ("self",)),
    "minimum": ("min", _PAIR),
    "maximum": ("max", _PAIR),
    "masked_fill": ("where", ("mask", "value", "self")),
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__"), ("and", _PAIR)),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__"), ("or", _PAIR)),
    **dict.fromkeys(("logical_not", "bitwise_not"), ("not", ("self",))),
}
"""Packets that compute exactly what a law names, of these arguments."""

TRIANGLES = "tril.default triu.default"
"""They clear elements by their place alone, along the last two dimensions."""

BY_CHANCE = "bernoulli.default bernoulli.p bernoulli.Tensor"

RESCALED = "div.Scalar mul.Scalar div.Scalar_mode"
"""Products with a number, which are linear."""

WHERE = "self ScalarSelf ScalarOther Scalar"

_EXACT = (torch.int64, torch.int32)


def _overloads(packet: str) -> Iterator[Any]:
    """The functional overloads of a packet that take a tensor and return one."""
    operators = getattr(torch.ops.aten, packet, None)
    for name in operators.overloads() if operators is not None else ():
        operator = getattr(operators, name)
        takes = [str(argument.type) for argument in schema(operator).arguments]
        gives = [str(result.type) for result in schema(operator).returns]
        mutates = any(
            argument.alias_info is not None and argument.alias_info.is_write
            for argument in schema(operator).arguments
        )
        if gives == ["Tensor"] and any("Tensor" in kind for kind in takes) and not mutates:
            yield operator


def computed(call: Call, function: str, names: Sequence[str]) -> Computed | None:
    """The law of a function of these arguments; None if it is not quite that function."""
    operands: list[Expression | float] = []
    for name in names:
        given = call[name]
        if not isinstance(given, Expression | bool | int | float):
            return None
        operands.append(given if isinstance(given, Expression) else float(given))
    truths = all(getattr(one, "dtype", None) == torch.bool for one in operands)
    if call.get("alpha", 1) != 1 or (function in ("not", "and", "or") and not truths):
        return None
    return Computed(function, tuple(operands))


def _rule(kind: str, law: Law | None = None, packet: str = "") -> Rule:
    def rule(call: Call) -> Expression:
        values = call.tensors()
        said = computed(call, *FUNCTIONS[packet]) if packet in FUNCTIONS else law
        # The other operand of a sum is a number, the same at every index.
        what = "shift" if kind == "add" and len(values) == 1 else kind
        return pointwise(what, *values, shape=call.shape, law=said)

    return rule


def cast(call: Call) -> Expression:
    """A copy in another dtype. What is known of integers survives only between exact ones."""
    (value, *_) = call.tensors()
    old, new = getattr(value, "dtype", None), call.outputs[0].dtype
    same = old == new or (old in _EXACT and new in _EXACT)
    law: Law | None = None
    if old in _EXACT_UP_TO and new in _EXACT_UP_TO:
        law = Cast(value, _EXACT_UP_TO[new])
    elif not same:
        law = Computed("cast", (value,))
    return pointwise("copy" if same else "linear", value, shape=call.shape, law=law)


_EXACT_UP_TO = {
    torch.int64: 2**62,
    torch.int32: 2**31 - 1,
    torch.float64: 2**53,
    torch.float32: 2**24,
}
"""Up to where the integers from 0 on are numbers of a type."""


def floor_divide(call: Call) -> Expression:
    """`floor_divide(x, y)`, and `div` where it rounds down, of integers by a number."""
    read = pointwise("nonlinear", *call.tensors(), shape=call.shape)
    value, divisor = call["self"], call["other"]
    floor = call.get("rounding_mode", "floor") == "floor"
    whole = getattr(value, "dtype", None) in _EXACT
    divisor = one_number(call.known(divisor)) if isinstance(divisor, Expression) else divisor
    if not (floor and whole and isinstance(divisor, int) and divisor > 0):
        return read
    return replace(read, law=Quotient(value, divisor))


def copied(call: Call) -> Expression:
    """`copy(x, source)`: the source, in x's shape and dtype."""
    call["self"], call["non_blocking"]
    return pointwise("linear", call["src"], shape=call.shape)


def where(call: Call) -> Expression:
    """A selection; a condition known everywhere leaves one side only."""
    condition, *sides = call.tensors()
    chosen = call.known(condition)
    if isinstance(chosen, Numbers) and len(sides) == 2 and chosen.array.size:
        truths = [bool(x) for x in chosen.array.flat if isinstance(x, int)]
        if len(truths) == chosen.array.size and len(set(truths)) == 1:
            return pointwise("copy", sides[0 if truths[0] else 1], shape=call.shape)
    law = computed(call, "where", ("condition", "self", "other"))
    return pointwise("nonlinear", condition, *sides, shape=call.shape, law=law)


def prelu(call: Call) -> Expression:
    """`prelu(x [N, C, ...], weight [C])`: the weight lies along dimension 1."""
    value, weight = call["self"], call["weight"]
    return pointwise("homogeneous", value, _along(weight, 1, len(value.shape)))


def fake_quantize(call: Call) -> Expression:
    """`fake_quantize_per_channel_affine(x, scale, zero_point, axis)`."""
    value, *parameters = call.tensors()
    rank = len(value.shape)
    axis = call.dim(call["axis"], rank)
    return pointwise("nonlinear", value, *(_along(one, axis, rank) for one in parameters))


def _along(parameter: Expression, dim: int, rank: int) -> Expression:
    """A parameter of one dimension, or of one number, along `dim`."""
    if not parameter.shape or parameter.shape == (1,):
        return parameter
    return Reshape(parameter, (*parameter.shape, *(1,) * (rank - 1 - dim)))


def triangle(call: Call) -> Expression:
    """`tril(x, k)` and `triu(x, k)`."""
    rank = len(call.shape)
    diagonal, (value,) = call["diagonal"], call.tensors()
    upper = "triu" in call.operator
    kept = None
    if isinstance(diagonal, int):
        kept = diagonal <= 0 if upper else diagonal >= 0
    law = Triangle((rank - 2, rank - 1), value, kept)
    return pointwise("nonlinear", value, shape=call.shape, law=law)


def dropout(call: Call) -> Result:
    """Zeroes by chance, alike for every content; the mask reads nothing of the data."""
    value = pointwise("linear", *call.tensors(), shape=call.shape, law=ByPlace())
    return (value, value) if len(call.outputs) == 2 else value


def _table() -> dict[str, Rule]:
    rules = {
        str(operator): _rule(kind, packet=packet)
        for kind, packets in KINDS.items()
        for packet in packets.split()
        for operator in _overloads(packet)
    }
    rules |= {f"aten.{name}": _rule("linear") for name in RESCALED.split()}
    rules |= {f"aten.{name}.other": _rule("homogeneous") for name in ("max", "min")}
    copies = """clone alias contiguous detach lift lift_fresh lift_fresh_copy detach_copy
        alias_copy resolve_conj resolve_neg"""
    rules |= {f"aten.{name}.default": _rule("copy") for name in copies.split()}
    casts = "_to_copy.default type_as.default to.dtype to.dtype_layout to.device to.other"
    rules |= {f"aten.{name}": cast for name in casts.split()}
    rules |= {f"aten.where.{name}": where for name in WHERE.split()}
    divisions = "floor_divide.default floor_divide.Scalar div.Tensor_mode div.Scalar_mode"
    rules |= {f"aten.{name}": floor_divide for name in divisions.split()}
    rules |= {f"aten.{name}": triangle for name in TRIANGLES.split()}
    rules |= {f"aten.{name}": _rule("nonlinear", ByPlace()) for name in BY_CHANCE.split()}
    rules["aten.copy.default"] = copied
    rules["aten.prelu.default"] = prelu
    rules["aten.fake_quantize_per_channel_affine.default"] = fake_quantize
    rules["aten.frexp.Tensor"] = lambda call: (
        pointwise("nonlinear", *call.tensors()),
        pointwise("nonlinear", *call.tensors()),
    )
    dropouts = "native_dropout.default dropout.default feature_dropout.default"
    rules |= {f"aten.{name}": dropout for name in dropouts.split()}
    return rules


RULES: dict[str, Rule] = _table()


def _arithmetic(name: str) -> Learn:
    def learn(call: Call) -> Known | None:
        left, right = call["self"], call["other"]
        rounding = name != "floordiv" or call.get("rounding_mode", "floor") in ("floor", "trunc")
        if not rounding or (name in ("add", "sub") and call.get("alpha", 1) != 1):
            return None
        return combined(name, _number(call, left), _number(call, right), call.shape)

    return learn


def _number(call: Call, operand: Any) -> Known | None:
    if isinstance(operand, Expression):
        return call.known(operand)
    return numbers(operand) if isinstance(operand, int | Polynomial) else None


_LEARNERS = {
    "add": "add.Tensor add.Scalar",
    "sub": "sub.Tensor sub.Scalar",
    "mul": "mul.Tensor mul.Scalar",
    "floordiv": "floor_divide.default floor_divide.Scalar div.Tensor_mode div.Scalar_mode",
    "mod": "remainder.Tensor remainder.Scalar",
    "and": "__and__.Tensor bitwise_and.Tensor logical_and.default",
    "or": "__or__.Tensor bitwise_or.Tensor logical_or.default",
} | {name: f"{name}.Tensor {name}.Scalar" for name in ("eq", "ne", "lt", "le", "gt", "ge")}

LEARN: dict[str, Learn] = {
    f"aten.{operator}": _arithmetic(name)
    for name, operators in _LEARNERS.items()
    for operator in operators.split()
}
