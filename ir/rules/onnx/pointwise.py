"""Operators each of whose elements reads the elements at its own place."""

from __future__ import annotations

from collections.abc import Sequence

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.known import Numbers, one_number
from planish.ir.flow.laws import ByPlace, Computed, Law, Triangle
from planish.ir.flow.vocabulary import Expression, Fill, Reshape, pointwise
from planish.ir.rules.onnx.call import Items, OnnxCall, OnnxRule, named
from planish.ir.rules.onnx.sizes import joined_shape

KINDS = {
    "linear": "Neg",
    "add": "Add Sub Sum",
    "hadamard": "Mul",
    "homogeneous": "Relu LeakyRelu Abs",
    "square": "Pow",
    "equal": "Equal",
    "nonlinear": """
        Acos Acosh And Asin Asinh Atan Atanh BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr
        BitwiseXor Ceil Celu Cos Cosh Div Elu Erf Exp Floor Gelu Greater GreaterOrEqual
        HardSigmoid HardSwish IsInf IsNaN Less LessOrEqual Log Max Mean Min Mish Mod Not Or
        Reciprocal RegexFullMatch Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt
        StringConcat SwiGLU Swish Tan Tanh ThresholdedRelu Xor
    """,
}

HARMLESS = [
    "alpha",
    "beta",
    "gamma",
    "lambd",
    "bias",
    "approximate",
    "direction",
    "fmod",
    "detect_negative",
    "detect_positive",
    "pattern",
    "consumed_inputs",
    "saturate",
    "round_mode",
    "to",
]
"""Attributes of these operators: numbers, modes and dtypes."""

EXACT = ("INT64", "INT32")
"""The types between which a cast keeps what is known."""


FUNCTIONS = {
    **{"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Min": "min", "Max": "max"},
    **{"Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge"},
    **{"And": "and", "Or": "or", "Not": "not", "Neg": "neg"},
}
"""Operators that compute exactly what a law names, of all their operands: one or two."""


def together(kind: str, *values: Expression, law: Law | None = None) -> Expression:
    """Each element reads the elements at its place, with broadcasting."""
    return pointwise(kind, *values, shape=joined_shape(value.shape for value in values), law=law)


def _law(name: str, values: Sequence[Expression]) -> Law | None:
    function = FUNCTIONS.get(name)
    fits = len(values) == (1 if function in ("neg", "not") else 2)
    return Computed(function, tuple(values)) if function is not None and fits else None


def _rule(kind: str) -> OnnxRule:
    def rule(call: OnnxCall) -> Expression:
        call.ignore(*HARMLESS)
        values = call.inputs()
        if not values:
            raise NotCovered("no input")
        if len(values) == 2 and call.attribute("broadcast", 0):
            values[1] = _placed(values[1], len(values[0].shape), call)
        return together(kind, *values, law=_law(call.name, values))

    return rule


def _placed(value: Expression, rank: int, call: OnnxCall) -> Expression:
    """The second operand as opset 6 broadcast it: from `axis` on, or aligned from the right."""
    axis = call["axis"]
    if axis is None:
        return value
    after = rank - call.place(axis, rank) - len(value.shape)
    if after < 0:
        raise NotCovered(f"broadcasting from axis {axis}")
    return Reshape(value, (*value.shape, *(1,) * after))


def identity(call: OnnxCall) -> Expression:
    """`Identity`, `Optional`, `OptionalGetElement`: of a tensor or of a sequence."""
    call.ignore("type")
    try:
        return Items(call.sequence(0))
    except NotCovered:
        return pointwise("copy", call.input(0))


def has_element(call: OnnxCall) -> Expression:
    """`OptionalHasElement`: of a tensor that is there, yes."""
    call.tensors()
    return Fill(())


def cast(call: OnnxCall) -> Expression:
    """A copy in another dtype. What is known of integers survives only between exact ones."""
    call.ignore("to", "saturate", "round_mode")
    value = call.input(0)
    if call.name == "CastLike":
        call.input(1)  # only its type
    old, new = getattr(value, "dtype", None), call.outputs[0].dtype
    same = old is not None and (old == new or (old in EXACT and new in EXACT))
    law = None if same else Computed("cast", (value,))
    return pointwise("copy" if same else "linear", value, law=law)


def clip(call: OnnxCall) -> Expression:
    """`Clip(x, min, max)`; the bounds were attributes before opset 11."""
    call.ignore("min", "max", "consumed_inputs")
    return pointwise("nonlinear", *call.inputs(), shape=call.input(0).shape)


def prelu(call: OnnxCall) -> Expression:
    """`PRelu(x, slope)`; before opset 7 the slope lies along the channels."""
    call.ignore("consumed_inputs")
    value, slope = call.input(0), call.input(1)
    if call.version < 7 and len(slope.shape) == 1 and len(value.shape) > 1:
        slope = Reshape(slope, (slope.shape[0], *(1,) * (len(value.shape) - 2)))
    return pointwise("homogeneous", value, slope, shape=value.shape)


def where(call: OnnxCall) -> Expression:
    """A selection; a condition known everywhere leaves one side only."""
    condition, *sides = call.input(0), call.input(1), call.input(2)
    shape = joined_shape([condition.shape, *(side.shape for side in sides)])
    chosen = call.known(condition)
    if isinstance(chosen, Numbers) and chosen.array.size:
        truths = set(chosen.array.flat)
        if truths in ({True}, {False}):
            return pointwise("copy", sides[0 if True in truths else 1], shape=shape)
    law = Computed("where", (condition, *sides))
    return pointwise("nonlinear", condition, *sides, shape=shape, law=law)


def dropout(call: OnnxCall) -> Result:
    """Zeroes by chance, alike for every content. Without training, a copy."""
    call.ignore("seed", "ratio", "consumed_inputs", "is_test")
    value, *settings = call.inputs()
    training = call.known(settings[-1]) if call.given(2) else None
    off = call.version >= 7 and (
        not call.given(2) or (isinstance(training, Numbers) and not any(training.array.flat))
    )
    out = pointwise("copy", value) if off else pointwise("linear", value, *settings, law=ByPlace())
    mask = pointwise("nonlinear", *settings, shape=value.shape) if settings else Fill(value.shape)
    return (out, mask)[: len(call.outputs)]


def trilu(call: OnnxCall) -> Expression:
    """`Trilu(x, k)`: clears elements by their place alone."""
    upper, value = call.attribute("upper", 1), call.input(0)
    known = call.known(call.input(1)) if call.given(1) else None
    diagonal = one_number(known) if call.given(1) else 0
    kept = None
    if isinstance(diagonal, int):
        kept = diagonal <= 0 if upper else diagonal >= 0
    law = Triangle(None, value, kept)
    return pointwise("nonlinear", *call.inputs(), shape=value.shape, law=law)


def bernoulli(call: OnnxCall) -> Expression:
    """`Bernoulli(x)`: zeroes and ones by chance, with the probability at its place."""
    call.ignore("dtype", "seed")
    return pointwise("nonlinear", call.input(0), law=ByPlace())


RULES = (
    {
        key: rule
        for kind, operators in KINDS.items()
        for key, rule in named(_rule(kind), operators).items()
    }
    | named(identity, "Identity Optional OptionalGetElement")
    | named(has_element, "OptionalHasElement")
    | named(cast, "Cast CastLike")
    | named(clip, "Clip")
    | named(prelu, "PRelu")
    | named(where, "Where")
    | named(dropout, "Dropout")
    | named(trilu, "Trilu")
    | named(bernoulli, "Bernoulli")
)
