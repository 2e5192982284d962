"""Kinds of sites, by the kinds of expressions that make them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planish.ir.axes.terms import Term
from planish.ir.flow.laws import ByPlace
from planish.ir.flow.vocabulary import Reads

WHOLE = {
    "contract": "contracted",
    "sum": "summed",
    "mean": "averaged",
    "extreme": "maximum",
    "named": "named",
    "statistic": "statistic",
    "softmax": "softmax",
    "norm": "layer norm",
    "layer norm": "layer norm",
    "rms norm": "rms norm",
    "gather": "looked up",
    "scatter": "written by index",
    "window": "neighbours",
    "scan": "running",
    "order": "chosen",
    "transform": "transformed",
}
"""What is done along a dimension that is read whole."""

MIXED = WHOLE | {"order": "sorted"}
"""What is done along a dimension whose elements read each other."""

_LINEAR = {"linear", "copy", "sum", "mean", "gather", "hadamard"}
"""What is linear in one operand, if the others have the same at every index."""

_EACH = {"homogeneous": "homogeneous", "add": "add"}
"""What is done along a dimension at whose every index the same happens; else: each by itself."""


def by_place(reads: Reads) -> Iterable[int]:
    """The dimensions of a result along which its elements depend on their place."""
    if not isinstance(reads.law, ByPlace) or reads.kind == "one hot":
        return ()
    return reads.law.dims if reads.law.dims is not None else range(len(reads.shape))


def each(kind: str, along: Sequence[tuple[Term, bool]], spread: int, numerator: bool) -> str:
    """What is done at every index alike; `numerator`: to the first operand too."""
    parameter = any(constant for _, constant in along)
    alone = len(along) == 1
    if kind == "contract":
        return "batched" if not alone else "produced by a weight" if parameter else "linear"
    if alone and (kind in _LINEAR or (kind == "ratio" and numerator)):
        return "linear"
    if kind in _LINEAR:
        return "scaled by a parameter" if parameter else "multiplied"
    if kind == "add" and spread:
        return "shifted"
    return _EACH.get(kind, "each by itself")
