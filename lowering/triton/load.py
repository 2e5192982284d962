"""From an artifact's folder to a program that is ready for a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.operators import is_operator, schema
from planish.ir.program import Program
from planish.lowering.triton import layout, operators
from planish.lowering.triton.generators import Spec
from planish.lowering.triton.lower import PRODUCTS, ROWS, check, kernels_of, listing_of
from planish.lowering.triton.plans import Plan, Product, read_plan, read_spec, text
from planish.lowering.triton.specs import WeightOnly
from planish.lowering.triton.tuning import Table, planned

Judge = Callable[[Iterable[Spec]], frozenset[Spec]]
"""Gives those of several kernels that are wrong on a device."""


def trusting(specs: Iterable[Spec]) -> frozenset[Spec]:  # noqa: ARG001
    """The judge that finds nothing: where kernels are not run."""
    return frozenset()


def load(folder: Path) -> tuple[Program, bool]:
    """The lowered program of an artifact, and whether bits of rows do not depend on their number.

    Raises:
        planish.lowering.artifact.BadArtifact: if its kernels are not those that its
            specifications generate.
        planish.ir.serialize.MalformedProgram: if the program is damaged.
    """
    program = Program.load(folder)
    check(folder, program)
    return program, bool(listing_of(folder).get("bitwise"))


def prepared(
    program: Program,
    device: torch.device,
    *,
    table: Table,
    bitwise: bool,
    dense: bool = False,
    judge: Judge = trusting,
) -> tuple[Program, tuple[str, ...]]:
    """A lowered program with its tensors on a device and plans for it, and how each was made.

    Args:
        program: that `load` gave.
        device: where it is to run.
        table: times measured there.
        bitwise: whether bits of rows may not depend on their number.
        dense: whether floating-point copies of weights may be kept.
        judge: finds kernels that are wrong there; plain torch replaces them.
    """
    tensors = {name: tensor.to(device) for name, tensor in program.tensors.items()}
    program = dataclasses.replace(program, tensors=tensors)
    told = []
    with program.edit() as edit:
        for node in edit.nodes(*PRODUCTS):
            product: Product = read_spec(str(node.args[-2]))
            plan, source = planned(product, table, bitwise=bitwise, dense=dense)
            if text(plan) != node.args[-1]:
                node.args = (*node.args[:-1], text(plan))
            if plan.keeps_dense:
                _keep_dense(edit, node)
            told.append(f"{node.name}: {product.name} by the {source}")
        if device.type != "cpu":
            _make_on(edit, device)
    program = edit.program
    found = judge(kernels_of(program))
    return (_without(program, found) if found else program), tuple(told)


def _make_on(edit: Any, device: torch.device) -> None:
    """Let what makes tensors make them on the device."""
    for node in edit.graph.nodes:
        named = schema(node.target).arguments if is_operator(node.target) else ()
        if any(argument.name == "device" for argument in named):
            node.kwargs = {**node.kwargs, "device": device}


def _keep_dense(edit: Any, node: fx.Node) -> None:
    """Store a weight in floating point too, for plans that multiply by it."""
    product: WeightOnly = read_spec(str(node.args[-2]))
    reads: list[fx.Node] = list(node.args[-4])  # type: ignore[arg-type]
    parts = product.stored
    found: dict[str, Tensor] = {
        name: edit.tensors[str(read.target)] for name, read in zip(parts, reads, strict=True)
    }
    whole = layout.dense(found, product).to(getattr(torch, product.dtype))
    name = f"{str(reads[0].target).removesuffix('_words')}_dense"
    read = edit.read(name, whole, before=node)
    node.update_arg(len(node.args) - 4, [*reads, read])


def _without(program: Program, wrong: frozenset[Spec]) -> Program:
    """The same with plain torch in place of wrong kernels."""
    with program.edit() as edit:
        for node in edit.nodes(*PRODUCTS):
            product: Product = read_spec(str(node.args[-2]))
            plan: Plan = read_plan(str(node.args[-1]))
            products = frozenset(each for each in wrong if isinstance(each, type(product)))
            node.args = (*node.args[:-1], text(plan.without(products, product)))
        for node in edit.nodes(*ROWS):
            if read_spec(str(node.args[-2])) in wrong:
                node.args = (*node.args[:-1], operators.REFERENCE)
    return edit.program
