"""Batches made for a model whose sizes are symbols: numbers for all of them, on which it runs."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np

from planish.ir.flow.polynomial import Count, Polynomial, substitute
from planish.ir.isolation.verdict import Given
from planish.runtime.runnable import CannotRun, Runnable
from planish.runtime.search import InputSpec, search
from planish.runtime.values import Array
from planish.runtime.witness import Feeds

REQUESTS = 3
"""Requests in the batches that are made."""

LENGTHS = (6, 4, 8, 16, 256)
"""Sizes for all other dimensions that are symbols, tried until the model runs."""


def specs_of(inputs: Sequence[Given], model: Runnable, rows: int) -> list[InputSpec]:
    """Inputs with numbers for all sizes, on which the model runs."""
    reason = ""
    for length in LENGTHS:
        specs = [_spec(one, model, length, rows) for one in inputs]
        try:
            next(search(model.run, specs, {}, tries=1), None)
        except Exception as error:  # whatever the backend raises
            reason = str(error)
            continue
        return specs
    raise CannotRun(f"the model does not run on the batches that were made for it: {reason}")


def _spec(given: Given, model: Runnable, length: int, rows: int) -> InputSpec:
    """One input: as the example has it where there is one, but for the number of rows."""
    shape = tuple(number(size, length) for size in given.shape)
    example = model.example.get(given.name)
    if example is None:
        return InputSpec(given.name, shape, model.dtypes[given.name], given.axis)
    shape = tuple(
        REQUESTS * rows if dim == given.axis and not isinstance(given.shape[dim], int) else size
        for dim, size in enumerate(example.shape)
    )
    whole = example.dtype.kind in "iu" and example.size
    codes = (int(example.min()), int(example.max())) if whole else None
    return InputSpec(given.name, shape, model.dtypes[given.name], given.axis, codes)


def tiled(specs: Sequence[InputSpec], example: Feeds) -> dict[str, Array]:
    """The example with as many rows as are wanted, its own over and over."""
    made = {}
    for spec in specs:
        if spec.name in example:
            value = example[spec.name]
            if spec.axis is not None:
                again = np.arange(spec.shape[spec.axis]) % value.shape[spec.axis]
                value = value.take(again, spec.axis)
            made[spec.name] = value.astype(spec.dtype)
    return made


def number(size: Count, length: int) -> int:
    """A size in numbers: `B` requests, and `length` for what else is a symbol."""
    if isinstance(size, int):
        return size
    values: dict[str, Count] = {}
    for name in size.symbols:
        values[name] = REQUESTS if name == "B" else _named(name, length)
    number = substitute(size, values)
    if isinstance(number, Polynomial):
        raise CannotRun(f"the size {size} cannot be chosen")
    return number


def _named(name: str, length: int) -> int:
    """A number for a name; names such as `past + sequence` are sums of those they name."""
    try:
        tree = ast.parse(name, mode="eval").body
    except SyntaxError:
        return length
    return _total(tree, length)


def _total(tree: ast.expr, length: int) -> int:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        return _total(tree.left, length) + _total(tree.right, length)
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    return length
