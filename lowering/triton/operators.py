"""The operators of `planish::` that generated kernels stand behind.

A node of a lowered graph carries its specification, and of a product its plan, as text. What
chooses by the number of rows is inside the operator, which torch.compile does not look into: a
choice that is traced would be frozen. On CUDA, and in Triton's interpreter, kernels run;
elsewhere their plain torch references do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.library import Library

from planish.lowering.triton import layout, reference
from planish.lowering.triton.build import interpreted
from planish.lowering.triton.launch import run, run_rows
from planish.lowering.triton.plans import Choice, Product, read_plan, read_spec
from planish.lowering.triton.specs import RowWise, Scaled, WeightOnly

DENSE = "dense"
"""The name of a weight's floating-point copy among its stored tensors."""

KERNEL, REFERENCE = "kernel", "reference"
"""How a row-wise operator is computed where kernels run."""


def names(product: Product) -> tuple[str, ...]:
    """A product's stored tensors, in order; a floating-point copy may follow them."""
    if isinstance(product, Scaled):
        return ("codes", "scales")
    return ("words", "scales", "zeros") if product.zeros else ("words", "scales")


def _tensors(
    product: Product, stored: Sequence[Tensor], operands: Sequence[Tensor]
) -> dict[str, Tensor]:
    found = dict(zip((*names(product), DENSE), stored, strict=False))
    flat = zip(product.epilogue.operands, operands, strict=True)
    return found | {
        name: each if name == "bias" else each.reshape(-1, product.n) for name, each in flat
    }


def _runs(x: Tensor) -> bool:
    return x.is_cuda or interpreted()


def _weight_only(
    x: Tensor, stored: Sequence[Tensor], operands: Sequence[Tensor], spec: str, plan: str
) -> Tensor:
    product: WeightOnly = read_spec(spec)
    flat = x.reshape(-1, product.k)
    choice = read_plan(plan).choice(flat.shape[0])
    tensors = _tensors(product, stored, operands)
    return compute(product, choice, flat, tensors).reshape(*x.shape[:-1], product.n)


def compute(product: Product, choice: Choice, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """A product [M, N] in the way that was chosen, or by plain torch where no kernel runs."""
    if isinstance(product, Scaled):
        if choice.how == "kernel" and _runs(x):
            return run(choice.of(product), x, tensors)
        return reference.scaled(product, x, tensors)
    if choice.how == "kernel" and _runs(x):
        return run(choice.of(product), x, tensors)
    weight = tensors[DENSE] if choice.how == "dense" else layout.dense(dict(tensors), product)
    return reference.product(product, x, weight.to(x.dtype), tensors)


def _scaled(
    x: Tensor,
    row_scales: Tensor,
    stored: Sequence[Tensor],
    operands: Sequence[Tensor],
    spec: str,
    plan: str,
) -> Tensor:
    product: Scaled = read_spec(spec)
    flat = x.reshape(-1, product.k)
    choice = read_plan(plan).choice(flat.shape[0])
    tensors = {**_tensors(product, stored, operands), "row_scales": row_scales.reshape(-1)}
    return compute(product, choice, flat, tensors).reshape(*x.shape[:-1], product.n)


def _rows(x: Tensor, operands: Sequence[Tensor], spec: str, how: str) -> tuple[Tensor, ...]:
    made: RowWise = read_spec(spec)
    listed = [*(["up"] if made.activation else []), *(["weight"] if made.weight else [])]
    given = dict(zip(listed, operands, strict=True))
    tensors = {
        "x": x.reshape(-1, made.width),
        **{name: t.reshape(-1, made.width) if name == "up" else t for name, t in given.items()},
    }
    runs = how == KERNEL and _runs(x)
    found = run_rows(made, tensors) if runs else reference.row_wise(made, tensors)
    return tuple(each.reshape(x.shape if each.dim() == 2 else x.shape[:-1]) for each in found)


def _row_wise(x: Tensor, operands: Sequence[Tensor], spec: str, how: str) -> Tensor:
    return _rows(x, operands, spec, how)[0]


def _row_codes(x: Tensor, operands: Sequence[Tensor], spec: str, how: str) -> tuple[Tensor, Tensor]:
    codes, scale = _rows(x, operands, spec, how)
    return codes, scale


def _product_fake(x: Tensor, *rest: object) -> Tensor:
    product: Product = read_spec(str(rest[-2]))
    return x.new_empty((*x.shape[:-1], product.n), dtype=getattr(torch, product.dtype))


def _row_wise_fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _row_codes_fake(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    made: RowWise = read_spec(str(rest[-2]))
    codes = x.new_empty(x.shape, dtype=getattr(torch, str(made.codes)))
    return codes, x.new_empty(x.shape[:-1], dtype=torch.float32)


_OPERATORS = {
    "weight_only(Tensor x, Tensor[] stored, Tensor[] operands, str spec, str plan) -> Tensor": (
        _weight_only,
        _product_fake,
    ),
    "scaled_product(Tensor x, Tensor row_scales, Tensor[] stored, Tensor[] operands, str spec, "
    "str plan) -> Tensor": (_scaled, _product_fake),
    "row_wise(Tensor x, Tensor[] operands, str spec, str how) -> Tensor": (
        _row_wise,
        _row_wise_fake,
    ),
    "row_codes(Tensor x, Tensor[] operands, str spec, str how) -> (Tensor codes, Tensor scales)": (
        _row_codes,
        _row_codes_fake,
    ),
}

_LIBRARY = Library("planish", "FRAGMENT")
for _schema, (_eager, _fake) in _OPERATORS.items():
    _name = _schema.partition("(")[0]
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_name, _eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"planish::{_name}", _fake, lib=_LIBRARY)

weight_only = torch.ops.planish.weight_only.default
"""`weight_only(x [..., K], stored, operands, spec, plan)`: a product with a packed weight, then an
epilogue whose tensors are `operands`; [..., N]."""

scaled_product = torch.ops.planish.scaled_product.default
"""`scaled_product(x [..., K], row_scales [...], stored, operands, spec, plan)`: the same of codes
of 8 bits, which `row_codes` made."""

row_wise = torch.ops.planish.row_wise.default
"""`row_wise(x [..., K], operands, spec, how)`: a norm or a gate of each row."""

row_codes = torch.ops.planish.row_codes.default
"""`row_codes(x [..., K], operands, spec, how)`: the same, rounded: codes and scales [...]."""
