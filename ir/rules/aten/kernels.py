"""What generated kernels read, by the specification that a call carries as text.

A kernel is opaque; its specification says what it computes, and loading an artifact makes sure
that the kernel is the one generated from it. Rows are all of x but its last dimension, each by
itself: K is contracted or normed along, N is free. A specification with a field that is not
known here is not covered, so that no later kind of kernel slips past.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from planish.ir.flow.call import Call, NotCovered, Rule
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    Shape,
    affine,
    along,
    contraction,
    inserted,
    pointwise,
    reduction,
)

TRUSTED = (
    "generated kernels compute what their specifications say; a session compares each with plain "
    "torch on a device that it has not run on before"
)
"""What these rules take on trust."""

FIELDS = {
    "WeightOnly": "n k dtype scale_dtype bits group zeros lanes scaling epilogue tiling",
    "Scaled": "n k dtype codes accurate step epilogue tiling",
    "GroupScaled": "n k dtype scale_dtype group lanes epilogue tiling",
    "RowWise": "width dtype norm eps weight bias activation codes warps",
    "Epilogue": "bias activation multiply residual",
}
"""By kind of specification, every field it has; `planish.lowering.triton.specs` explains them."""

NORMS = {None: "", "rms": "rms norm", "layer": "norm"}
"""What each norm is in the vocabulary."""

Fields = Mapping[str, Any]

NO_EPILOGUE: Fields = dict.fromkeys(FIELDS["Epilogue"].split())
"""What stands for the epilogue of kernels that have none."""


def weight_only(call: Call) -> Expression:
    """`weight_only(x [..., K], stored, operands, spec, plan)`: times a packed weight [N, K]."""
    spec = _specification(call, "WeightOnly")
    weight = _packed(call, spec, 3 if spec["zeros"] else 2)
    return _finished(call, spec, _product(call, spec, weight))


def scaled_product(call: Call) -> Expression:
    """`scaled_product(x [..., K], row_scales [...], stored, operands, spec, plan)`: of codes."""
    spec = _specification(call, "Scaled", "GroupScaled")
    rows = call["row_scales"]
    _fits("row_scales", rows, call["x"].shape[:-1])
    if spec["operator"] == "GroupScaled":
        y = _product(call, spec, _packed(call, spec, 2))
    else:
        codes, scales = _stored(call, 2)
        _fits("codes", codes, (spec["n"], spec["k"]))
        _fits("scales", scales, (spec["n"],))
        product = _product(call, spec, codes)
        y = pointwise("hadamard", product, scales, shape=product.shape)
    scaled = pointwise("hadamard", y, inserted(rows, len(rows.shape)), shape=y.shape)
    return _finished(call, spec, scaled)


def row_wise(call: Call) -> Expression:
    """`row_wise(x [..., K], operands, spec, how)`: a norm or a gate of each row."""
    return _row(call)


def row_codes(call: Call) -> tuple[Expression, Expression]:
    """`row_codes(x [..., K], operands, spec, how)`: the same as codes, and a scale for each row."""
    y = _row(call)
    last = len(y.shape) - 1
    scale = reduction("extreme", pointwise("nonlinear", y), (last,))
    ratio = pointwise("ratio", y, inserted(scale, last), shape=y.shape)
    return pointwise("nonlinear", ratio), scale


def _specification(call: Call, *kinds: str) -> Fields:
    """The fields of a call's specification.

    Raises:
        NotCovered: if it is of another kind, or has other fields.
    """
    try:
        found: dict[str, Any] = json.loads(call["spec"])
        kind = found["operator"]
        known = kind in kinds and _has_fields(kind, found, "operator")
        known = known and _has_fields("Epilogue", found.get("epilogue", NO_EPILOGUE))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NotCovered(f"a specification that cannot be read ({error})") from error
    if not known:
        raise NotCovered(
            f"a specification other than {' or '.join(kinds)} with the fields known here"
        )
    call.get("plan")  # which of several kernels for the same function
    call.get("how")  # or plain torch
    return found


def _has_fields(kind: str, found: Fields, *more: str) -> bool:
    return found.keys() == {*FIELDS[kind].split(), *more}


def _fits(what: str, value: Expression, shape: Shape) -> None:
    """Make sure of a shape, since kernels read memory as the specification says.

    Raises:
        NotCovered: if it is another one.
    """
    if tuple(value.shape) != tuple(shape):
        raise NotCovered(f"{what}: shape {_text(value.shape)}, specified {_text(shape)}")


def _text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _stored(call: Call, count: int) -> list[Expression]:
    """The tensors of a weight."""
    given: list[Expression] = call["stored"]
    if len(given) != count:
        raise NotCovered(f"a weight stored as {len(given)} tensors; it should be {count}")
    return given


def _packed(call: Call, spec: Fields, count: int) -> Expression:
    """A weight [N, K] out of packed codes [N, words], and scales and zero points [groups, N]."""
    words, *groups = _stored(call, count)
    _fits("packed weight", words, (spec["n"], *words.shape[1:2]))
    for one in groups:
        _fits("scales or zero points", one, (*one.shape[:1], spec["n"]))
    parts = (Operand(words, (0, "words")), *(Operand(one, ("groups", 0)) for one in groups))
    return Reads((spec["n"], spec["k"]), parts, "transform")  # places in a word count


def _named(names: Iterable[str], call: Call) -> dict[str, Expression]:
    """The operands of a call by name."""
    names, given = tuple(names), call["operands"]
    if len(names) != len(given):
        raise NotCovered(f"{len(given)} operands, where the specification has {len(names)}")
    return dict(zip(names, given, strict=True))


def _product(call: Call, spec: Fields, weight: Expression) -> Expression:
    """Each row [K] times a weight [N, K]."""
    x = call["x"]
    _fits("x", x, (*x.shape[:-1], spec["k"]))
    last = len(x.shape) - 1
    shape = (*x.shape[:-1], spec["n"])
    return contraction(shape, (x, (*range(last), "in")), (weight, (last, "in")))


def _finished(call: Call, spec: Fields, y: Expression) -> Expression:
    """A product after its epilogue, in the order that this has."""
    given: Fields = spec["epilogue"]
    taken = _named((name for name in ("bias", "multiply", "residual") if given[name]), call)
    for name, one in taken.items():
        _fits(name, one, y.shape[-1:] if name == "bias" else y.shape)
    if "bias" in taken:
        y = pointwise("add", y, taken["bias"], shape=y.shape)
    if given["activation"]:
        y = pointwise("nonlinear", y)
    if "multiply" in taken:
        y = pointwise("hadamard", y, taken["multiply"])
    return pointwise("add", y, taken["residual"]) if "residual" in taken else y


def _row(call: Call) -> Expression:
    """A norm or a gate of each row, or the row as it is."""
    spec = _specification(call, "RowWise")
    y: Expression = call["x"]
    _fits("x", y, (*y.shape[:-1], spec["width"]))
    order = {"up": bool(spec["activation"]), "weight": spec["weight"], "bias": spec["bias"]}
    given = _named((name for name, taken in order.items() if taken), call)
    for name, one in given.items():
        _fits(name, one, y.shape if name == "up" else y.shape[-1:])
    if spec["norm"] not in NORMS:
        raise NotCovered(f"a norm {spec['norm']!r}")
    if kind := NORMS[spec["norm"]]:
        y = along(kind, y, (len(y.shape) - 1,))
    y = affine(y, given.get("weight"), given.get("bias"))
    if spec["activation"]:
        y = pointwise("hadamard", pointwise("nonlinear", y), given["up"])
    return y


RULES: dict[str, Rule] = {
    "planish.weight_only": weight_only,
    "planish.scaled_product": scaled_product,
    "planish.row_wise": row_wise,
    "planish.row_codes": row_codes,
}
