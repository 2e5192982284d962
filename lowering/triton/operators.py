"""The operators of `planish::` that generated kernels stand behind.

A node of a lowered graph carries its specification, and of a product its plan, as text. What
chooses by the number of rows is inside the operator, which torch.compile does not look into: a
choice that is traced would be frozen. On CUDA, and in Triton's interpreter, kernels run;
elsewhere their plain torch references do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from planish.lowering.triton import layout, reference
from planish.lowering.triton.build import interpreted
from planish.lowering.triton.fields import NoKernel
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.launch import run, run_routed, run_rows
from planish.lowering.triton.plans import Choice, Product, read_plan, read_spec
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import CodesProduct, WeightOnly

DENSE = "dense"
"""The name of a weight's floating-point copy among its stored tensors."""

KERNEL, REFERENCE = "kernel", "reference"
"""How a row-wise operator is computed where kernels run."""


def _tensors(
    product: Product, stored: Sequence[Tensor], operands: Sequence[Tensor]
) -> dict[str, Tensor]:
    found = dict(zip((*product.stored, DENSE), stored, strict=False))
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


def compute(product: Alone, choice: Choice, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """A product [M, N] in the way that was chosen, or by plain torch where no kernel runs."""
    if choice.how == "kernel" and _runs(x):
        return run(choice.of(product), x, tensors)
    if isinstance(product, Floating):
        return reference.alone(product, x, tensors)
    if not isinstance(product, WeightOnly):
        return reference.of_codes(product, x, tensors)
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
    product: CodesProduct = read_spec(spec)
    flat = x.reshape(-1, product.k)
    choice = read_plan(plan).choice(flat.shape[0])
    tensors = {**_tensors(product, stored, operands), "row_scales": row_scales.reshape(-1)}
    return compute(product, choice, flat, tensors).reshape(*x.shape[:-1], product.n)


def _routed(
    x: Tensor,
    row_scales: Tensor | None,
    chosen: Tensor,
    stored: Sequence[Tensor],
    operands: Sequence[Tensor],
    spec: str,
    plan: str,
) -> Tensor:
    product: Routed = read_spec(spec)
    tensors = dict(zip(product.stored, stored, strict=True))
    for name, each in zip(product.epilogue.operands, operands, strict=True):
        tensors[name] = each if name == "bias" else each.reshape(-1, product.n)
    if row_scales is not None:
        tensors["row_scales"] = row_scales.reshape(-1)
    choice = read_plan(plan).choice(-(-chosen.numel() // product.experts))
    return compute_routed(product, choice, x, chosen, tensors)


def compute_routed(
    product: Routed, choice: Choice, x: Tensor, chosen: Tensor, tensors: Mapping[str, Tensor]
) -> Tensor:
    """A routed product [M, C, N] in the way that was chosen; see `compute`."""
    if choice.how == "kernel" and _runs(x):
        return run_routed(choice.of(product), x, chosen, tensors)
    return reference.routed(product, x, chosen, tensors)


def _rows(x: Tensor, operands: Sequence[Tensor], spec: str, how: str) -> tuple[Tensor, ...]:
    made: RowWise = read_spec(spec)
    given = dict(zip(made.operands, operands, strict=True))
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


def _product_fake(x: Tensor, *rest: Any) -> Tensor:
    *row_scales, stored, operands, spec, _ = rest
    product: Product = read_spec(spec)
    lead = x.shape[:-1]
    y = x.new_empty((*lead, product.n), dtype=getattr(torch, product.dtype))
    _fit("x", x, (*lead, product.k))
    for each in row_scales:
        _fit("row_scales", each, lead)
    for (name, shape), each in zip(product.stored.items(), stored, strict=False):
        _fit(name, each, shape)
    for name, each in zip(product.epilogue.operands, operands, strict=True):
        _fit(name, each, y.shape[-1:] if name == "bias" else y.shape)
    return y


def _routed_fake(
    x: Tensor,
    row_scales: Tensor | None,
    chosen: Tensor,
    stored: Sequence[Tensor],
    operands: Sequence[Tensor],
    spec: str,
    _: str,
) -> Tensor:
    product: Routed = read_spec(spec)
    y = x.new_empty((*chosen.shape, product.n), dtype=getattr(torch, product.dtype))
    lead = chosen.shape[:1] if product.shared else chosen.shape
    _fit("x", x, (*lead, product.k))
    if isinstance(product.product, CodesProduct):
        _fit("row_scales", torch.empty(()) if row_scales is None else row_scales, lead)
    _fit("chosen", chosen, (*chosen.shape[:1], product.chosen))
    for (name, shape), each in zip(product.stored.items(), stored, strict=True):
        _fit(name, each, shape)
    for name, each in zip(product.epilogue.operands, operands, strict=True):
        _fit(name, each, (product.experts, product.n) if name == "bias" else y.shape)
    return y


def _row_wise_fake(x: Tensor, operands: Sequence[Tensor], spec: str, _: str) -> Tensor:
    made: RowWise = read_spec(spec)
    _fit("x", x, (*x.shape[:-1], made.width))
    for name, each in zip(made.operands, operands, strict=True):
        _fit(name, each, x.shape if name == "up" else (made.width,))
    return x.new_empty(x.shape)


def _row_codes_fake(
    x: Tensor, operands: Sequence[Tensor], spec: str, how: str
) -> tuple[Tensor, Tensor]:
    made: RowWise = read_spec(spec)
    x = _row_wise_fake(x, operands, spec, how)
    codes = x.new_empty(x.shape, dtype=getattr(torch, str(made.codes)))
    return codes, x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fit(name: str, tensor: Tensor, shape: Sequence[int | torch.SymInt]) -> None:
    """Make sure of a shape: kernels read memory as their specification says.

    Raises:
        NoKernel: if it is another one.
    """
    if tuple(tensor.shape) != tuple(shape):
        found, wanted = ([*map(str, one)] for one in (tensor.shape, shape))
        raise NoKernel(f"{name} has the shape {found}, and the specification says {wanted}")


_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "weight_only(Tensor x, Tensor[] stored, Tensor[] operands, str spec, str plan) -> Tensor": (
        _weight_only,
        _product_fake,
    ),
    "scaled_product(Tensor x, Tensor row_scales, Tensor[] stored, Tensor[] operands, str spec, "
    "str plan) -> Tensor": (_scaled, _product_fake),
    "routed_product(Tensor x, Tensor? row_scales, Tensor chosen, Tensor[] stored, "
    "Tensor[] operands, str spec, str plan) -> Tensor": (_routed, _routed_fake),
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

routed_product = torch.ops.planish.routed_product.default
"""`routed_product(x [M, K] or [M, C, K], row_scales, chosen [M, C], stored, operands, spec, plan)`:
each row by the weight of an expert, [M, C, N]; 0 where a number is no expert's. Scales [M] or
[M, C] only of codes."""

row_wise = torch.ops.planish.row_wise.default
"""`row_wise(x [..., K], operands, spec, how)`: a norm or a gate of each row."""

row_codes = torch.ops.planish.row_codes.default
"""`row_codes(x [..., K], operands, spec, how)`: the same, rounded: codes and scales [...]."""
