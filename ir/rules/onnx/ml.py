"""Operators of ai.onnx.ml: classical models, which look at one row at a time."""

from __future__ import annotations

from planish.ir.flow.call import Result
from planish.ir.flow.polynomial import Polynomial
from planish.ir.flow.vocabulary import Expression, Operand, Reads, Shape, along, pointwise
from planish.ir.rules.onnx.call import OnnxCall, named

DOMAIN = "ai.onnx.ml"


def each(call: OnnxCall) -> Expression:
    """`Scaler`, `Imputer`, `Binarizer`, `LabelEncoder`: parameters are attributes."""
    (value,) = call.tensors()
    return pointwise("nonlinear", value)


def normalizer(call: OnnxCall) -> Expression:
    """`Normalizer(x [N, C] or [C])`: each row."""
    value = call.input(0)
    call.ignore("norm")
    return along("norm", value, (len(value.shape) - 1,))


def by_row(call: OnnxCall) -> Result:
    """Models that give each row of [N, C] a label or numbers, as many as there are classes."""
    (value,) = call.tensors()
    rows = value.shape[0] if len(value.shape) > 1 else 1
    tags = (0, "feature") if len(value.shape) > 1 else ("feature",)
    classes = Polynomial.symbol(f"classes({call.outputs[0].name})")

    def reads(shape: Shape) -> Expression:
        return Reads(shape, (Operand(value, tags),), "statistic")

    if "Classifier" in call.operator:
        return (reads((rows,)), reads((rows, classes)))[: len(call.outputs)]
    return reads((rows, classes))


RULES = (
    named(each, "Scaler Imputer Binarizer LabelEncoder", DOMAIN)
    | named(normalizer, "Normalizer", DOMAIN)
    | named(
        by_row,
        """LinearClassifier LinearRegressor SVMClassifier SVMRegressor TreeEnsemble
        TreeEnsembleClassifier TreeEnsembleRegressor""",
        DOMAIN,
    )
)
