"""What generated kernels read, by the specification that a call carries as text.

A kernel is opaque; its specification says what it computes, and loading an artifact makes sure
that the kernel is the one generated from it. Rows are all of x but its last dimension, each by
itself: K is contracted or normed along, N is free. A specification with a field that is not
known here is not covered, so that no later kind of kernel slips past.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
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
    "Floating": "n k dtype step epilogue tiling",
    "Routed": "product experts chosen shared",
    "RowWise": "width dtype norm eps weight bias activation codes warps",
    "Epilogue": "bias activation multiply residual",
}
"""By kind of specification, every field it has; `planish.lowering.triton.specs` explains them."""

NORMS = {None: "", "rms": "rms norm", "layer": "norm"}
"""What each norm is in the vocabulary."""

Fields = Mapping[str, Any]

OF_CODES = ("Scaled", "GroupScaled")
"""Products of rows that are codes, each with a scale."""

NO_EPILOGUE: Fields = dict.fromkeys(FIELDS["Epilogue"].split())
"""What stands for the epilogue of kernels that have none."""


def weight_only(call: Call) -> Expression:
    """`weight_only(x [..., K], stored, operands, spec, plan)`: times a packed weight [N, K]."""
    spec = _specification(call, "WeightOnly")
    weight = _packed(call, spec, 3 if spec["zeros"] else 2)
    return _finished(call, spec, _product(call, spec, weight))


def scaled_product(call: Call) -> Expression:
    """`scaled_product(x [..., K], row_scales [...], stored, operands, spec, plan)`: of codes."""
    spec = _specification(call, *OF_CODES)
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


def routed_product(call: Call) -> Expression:
    """`routed_product(x, row_scales, chosen, stored, ...)`: by the weights that rows choose.

    Row [m, c] of the result is row [m, c] of x [M, C, K], or row m of x [M, K], times the weight of
    the stack [E, N, K] whose number is at [m, c] of `chosen`. In which order the kernel takes rows
    is its own affair: each comes back to its place.
    """
    spec = _specification(call, "Routed")
    x, chosen, product = call["x"], call["chosen"], spec["product"]
    lead = chosen.shape[:1] if spec["shared"] else chosen.shape
    _fits("chosen", chosen, (*chosen.shape[:1], spec["chosen"]))
    _fits("x", x, (*lead, product["k"]))
    shape = (*chosen.shape, product["n"])
    picked = Reads(
        (*shape, product["k"]),
        (Operand(_stack(call, spec), ("looked up", 2, 3)), Operand(chosen, (0, 1), 0)),
        "gather",
    )
    y = contraction(shape, (x, (*range(len(lead)), "in")), (picked, (0, 1, 2, "in")))
    rows = call["row_scales"]
    if product["operator"] in OF_CODES:
        _fits("row_scales", rows, lead)
        scales = (Operand(y, (0, 1, 2)), Operand(rows, tuple(range(len(lead)))))
        y = Reads(shape, scales, "hadamard")
    return _finished(call, product, y, lambda bias: _of_experts(spec, bias, chosen, shape))


def _stack(call: Call, spec: Fields) -> Expression:
    """The weights [E, N, K] of experts, out of packed codes, scales and zero points if need be."""
    product, experts = spec["product"], spec["experts"]
    if product["operator"] == "Floating":
        (weight,) = _stored(call, 1)
        _fits("weight", weight, (experts, product["n"], product["k"]))
        return weight
    if product["operator"] == "Scaled":
        codes, scales = _stored(call, 2)
        _fits("codes", codes, (experts, product["n"], product["k"]))
        _fits("scales", scales, (experts, product["n"]))
        return pointwise("hadamard", codes, inserted(scales, 2), shape=codes.shape)
    words, *groups = _stored(call, 3 if product.get("zeros") else 2)
    _fits("packed weight", words, (experts, product["n"], *words.shape[2:3]))
    for one in groups:
        _fits("scales or zero points", one, (experts, *one.shape[1:2], product["n"]))
    parts = (Operand(words, (0, 1, "words")), *(Operand(one, (0, "groups", 1)) for one in groups))
    return Reads((experts, product["n"], product["k"]), parts, "transform")


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
        known = _is_known(found, kinds)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NotCovered(f"a specification that cannot be read ({error})") from error
    if not known:
        raise NotCovered(
            f"a specification other than {' or '.join(kinds)} with the fields known here"
        )
    call.get("plan")  # which of several kernels for the same function
    call.get("how")  # or plain torch
    return found


def _is_known(found: Fields, kinds: Iterable[str]) -> bool:
    """Whether a specification is one of these kinds, and all that it holds is known."""
    kind = found["operator"]
    known = kind in kinds and _has_fields(kind, found, "operator")
    if kind == "Routed":
        return known and _is_known(found["product"], ("WeightOnly", "Floating", *OF_CODES))
    return known and _has_fields("Epilogue", found.get("epilogue", NO_EPILOGUE))


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


def _finished(
    call: Call,
    spec: Fields,
    y: Expression,
    bias_of: Callable[[Expression], Expression] | None = None,
) -> Expression:
    """A product after its epilogue, in the order that this has.

    Args:
        call: of the kernel.
        spec: of the product.
        y: the product.
        bias_of: what of a bias is added; all of one vector unless given.
    """
    given: Fields = spec["epilogue"]
    taken = _named((name for name in ("bias", "multiply", "residual") if given[name]), call)
    for name, one in taken.items():
        if name == "bias" and bias_of:
            taken[name] = bias_of(one)
        else:
            _fits(name, one, y.shape[-1:] if name == "bias" else y.shape)
    if "bias" in taken:
        y = pointwise("add", y, taken["bias"], shape=y.shape)
    if given["activation"]:
        y = pointwise("nonlinear", y)
    if "multiply" in taken:
        y = pointwise("hadamard", y, taken["multiply"])
    return pointwise("add", y, taken["residual"]) if "residual" in taken else y


def _of_experts(spec: Fields, biases: Expression, chosen: Expression, shape: Shape) -> Expression:
    """Of biases [E, N] those of the chosen experts."""
    _fits("bias", biases, (spec["experts"], shape[-1]))
    return Reads(shape, (Operand(biases, ("looked up", 2)), Operand(chosen, (0, 1), 0)), "gather")


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
    "planish.routed_product": routed_product,
    "planish.row_wise": row_wise,
    "planish.row_codes": row_codes,
}
