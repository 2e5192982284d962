"""Operators that read whole dimensions: reductions, softmax, running sums, selections."""

from __future__ import annotations

from dataclasses import replace

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.known import Known, Numbers, numbers
from planish.ir.flow.laws import Chosen, Softmax
from planish.ir.flow.polynomial import product
from planish.ir.flow.vocabulary import (
    Expression,
    Opaque,
    Operand,
    Reads,
    along,
    pointwise,
    reduction,
    replace_at,
)
from planish.ir.rules.aten.reduction import chosen
from planish.ir.rules.onnx.call import OnnxCall, OnnxLearn, OnnxRule, named
from planish.ir.rules.onnx.sizes import least, minimum

REDUCTIONS = {
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "extreme": "ReduceMax ReduceMin",
    "statistic": """
        ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare
    """,
}


def reduced_dims(call: OnnxCall, rank: int) -> tuple[int, ...]:
    """The dimensions that a reduction reads whole: attributes first, an input later."""
    since = 13 if call.name == "ReduceSum" else 18
    if call.version < since:
        axes = call.integers("axes")
        nothing = False
    else:
        nothing = bool(call.attribute("noop_with_empty_axes", 0))
        axes = call.axes(1) if call.given(1) else None
    if not axes:
        return () if nothing else tuple(range(rank))
    return tuple(sorted({call.place(axis, rank) for axis in axes}))


def _reduce(kind: str) -> OnnxRule:
    def rule(call: OnnxCall) -> Expression:
        value = call.input(0)
        keep = bool(call.attribute("keepdims", 1))
        return reduction(kind, value, reduced_dims(call, len(value.shape)), keep)

    return rule


def arg_extreme(call: OnnxCall) -> Expression:
    """`ArgMax` and `ArgMin(x, axis)`."""
    value = call.input(0)
    call.ignore("select_last_index")
    dim = call.place(call.attribute("axis", 0), len(value.shape))
    read = reduction("statistic", value, (dim,), bool(call.attribute("keepdims", 1)))
    return replace(read, law=Chosen(value.shape[dim], value, dim))


def softmax(call: OnnxCall) -> Expression:
    """`Softmax(x, axis)`: before opset 13 it reads all dimensions from `axis` on."""
    value = call.input(0)
    rank = len(value.shape)
    flat = call.version < 13
    axis = call.attribute("axis", 1 if flat else -1)
    if flat and axis == rank:
        return along("softmax", value, ())
    dim = call.place(axis, rank)
    law = Softmax(value) if call.name == "Softmax" else None
    return along("softmax", value, range(dim, rank) if flat else (dim,), law=law)


def running(call: OnnxCall) -> Expression:
    """`CumSum` and `CumProd(x, axis)`; an axis that is not known may be any."""
    value, axis = call.input(0), call.input(1)
    call.ignore("exclusive", "reverse")
    rank = len(value.shape)
    known = call.control(1)
    if isinstance(known, Numbers) and known.array.size == 1:
        return along("scan", value, (call.place(call.integer(1), rank),))
    return pointwise("nonlinear", along("scan", value, range(rank)), axis)


def top_k(call: OnnxCall) -> Result:
    """`TopK(x, k, axis)`: values and places, chosen from the whole dimension."""
    value = call.input(0)
    call.ignore("largest", "sorted")
    dim = call.place(call.attribute("axis", -1), len(value.shape))
    if call.version < 10:
        shape = replace_at(value.shape, dim, call.attribute("k", 1))
    else:
        try:
            number = call.numbers(1)[0]
        except NotCovered:
            shape = replace_at(value.shape, dim, call.fresh())
            why = "how many are chosen depends on the data"
            return tuple(Opaque(shape, call.tensors(), why, "shape") for _ in call.outputs)
        if (least(number) or 0) < 0:
            raise NotCovered("a number that may be negative")
        # From opset 24 on, more than there are means all.
        shape = replace_at(
            value.shape, dim, minimum(number, value.shape[dim]) if call.version >= 24 else number
        )
    read = chosen(value, dim, shape)
    return (read, replace(read, law=Chosen(value.shape[dim], value, dim)))[: len(call.outputs)]


def lp_norm(call: OnnxCall) -> Expression:
    """`LpNormalization(x, axis)`."""
    value = call.input(0)
    call.ignore("p")
    return along("norm", value, (call.place(call.attribute("axis", -1), len(value.shape)),))


def determinant(call: OnnxCall) -> Expression:
    """`Det(x [..., M, M])`."""
    value = call.input(0)
    rank = len(value.shape)
    return reduction("statistic", value, (rank - 2, rank - 1))


def nll_loss(call: OnnxCall) -> Expression:
    """`NegativeLogLikelihoodLoss(x [N, C, ...], target [N, ...], weight [C])`."""
    return _loss(call)


def cross_entropy(call: OnnxCall) -> Result:
    """`SoftmaxCrossEntropyLoss`, with the logarithms of probabilities."""
    return (_loss(call), along("softmax", call.input(0), (1,)))[: len(call.outputs)]


def _loss(call: OnnxCall) -> Expression:
    """One loss a target, or a sum or mean over all of them."""
    scores, target, weight = call.input(0), call.input(1), call.optional(2)
    call.ignore("ignore_index")
    rank = len(scores.shape)
    row = Operand(scores, (0, "class", *range(1, rank - 1)))
    operands = [row, Operand(target, tuple(range(rank - 1)))]
    if weight is not None:
        operands.append(Operand(weight, ("class",)))
    shape = (scores.shape[0], *scores.shape[2:])
    each = Reads(shape, tuple(operands), "statistic")
    if call.attribute("reduction", "mean") == "none":
        return each
    return reduction("mean", each, range(len(shape)))


RULES = (
    {
        key: rule
        for kind, operators in REDUCTIONS.items()
        for key, rule in named(_reduce(kind), operators).items()
    }
    | named(arg_extreme, "ArgMax ArgMin")
    | named(softmax, "Softmax LogSoftmax Hardmax")
    | named(running, "CumSum CumProd")
    | named(top_k, "TopK")
    | named(lp_norm, "LpNormalization")
    | named(determinant, "Det")
    | named(nll_loss, "NegativeLogLikelihoodLoss")
    | named(cross_entropy, "SoftmaxCrossEntropyLoss")
)


def _product(call: OnnxCall) -> Known | None:
    """The product of all elements: how models compute a number of elements."""
    known = call.known(call.input(0))
    rank = len(call.input(0).shape)
    if not isinstance(known, Numbers) or len(reduced_dims(call, rank)) != rank:
        return None
    shape = (1,) * rank if call.attribute("keepdims", 1) else ()
    return numbers([product(known.array.flat)], shape)


LEARN: dict[tuple[str, str], OnnxLearn] = {("", "ReduceProd"): _product}
