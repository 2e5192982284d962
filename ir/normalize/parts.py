"""One kind of part: splits and unbinds become slices and selects, with bounds written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from planish.ir.edit import Edit
from planish.ir.normalize.match import (
    Found,
    Rule,
    anything,
    calls,
    cut,
    getitem,
    node,
    number,
    shape,
)

aten = torch.ops.aten

X, DIM, PLACE, SIZE, START, STOP = (
    node("x"),
    number("dim"),
    number("place"),
    number("size"),
    anything("start"),
    anything("stop"),
)
_split = calls(aten.split.Tensor)
_split_with_sizes = calls(aten.split_with_sizes.default)
_index = calls(aten.index.Tensor)
_unbind = calls(aten.unbind.int)


def _extent(found: Found) -> Any:
    """How long the tensor is that is taken apart, along the dimension where it is."""
    return shape(found["x"])[found["dim"]]


def _slice(edit: Edit, here: fx.Node, found: Found, start: int, stop: int) -> fx.Node:
    x: fx.Node = found["x"]
    if (start, stop) == (0, _extent(found)):
        return x
    dim = found["dim"] % len(shape(x))
    return edit.call(aten.slice.Tensor, x, dim, start, stop, before=here)


def _even_part(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    extent, size = _extent(found), found["size"]
    if not isinstance(extent, int):
        return None
    start = found["place"] * size
    return _slice(edit, here, found, start, min(start + size, extent))


def _uneven_part(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    sizes, place = found["size"], found["place"]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return _slice(edit, here, found, sum(sizes[:place]), sum(sizes[: place + 1]))


def _element(edit: Edit, here: fx.Node, found: Found) -> fx.Node:
    dim = found["dim"] % len(shape(found["x"]))
    return edit.call(aten.select.int, found["x"], dim, found["place"], before=here)


def _bounds(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """Bounds as `range` would have them: from 0 to the extent, whatever was written."""
    extent, start, stop = _extent(found), found["start"], found["stop"]
    if any(isinstance(bound, fx.Node) for bound in (start, stop)) or not isinstance(extent, int):
        return None
    exact = slice(start, stop).indices(extent)[:2]
    return None if exact == (start, stop) else _slice(edit, here, found, *exact)


def _constant_positions(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """`x[:, [4, 5]]` with positions stored as a tensor, where they follow one another."""
    *whole, index = found["indices"]
    if any(whole) or index.op != "get_attr" or index.meta["val"].dim() != 1:
        return None
    dim = len(whole)
    extent = shape(found["x"])[dim]
    stored = edit.tensors[index.target]
    if stored.dtype == torch.bool or not isinstance(extent, int):
        return None
    if stored.is_meta or isinstance(stored, FakeTensor):  # a program of a config, without data
        return None
    places = [place % extent for place in stored.tolist()]
    if not places or places != list(range(places[0], places[0] + len(places))):
        return None
    return _slice(edit, here, {**found, "dim": dim}, places[0], places[-1] + 1)


RULES = (
    Rule(getitem(_split(X, SIZE, DIM), PLACE), _even_part),
    Rule(getitem(_split_with_sizes(X, anything("size"), DIM), PLACE), _uneven_part),
    Rule(getitem(_unbind(X, DIM), PLACE), _element),
    Rule(cut(X, DIM, START, STOP), _bounds),
    Rule(_index(X, anything("indices")), _constant_positions),
)
"""`split(x)[i]`, `unbind(x)[i]`, `x[-3:]`, `x[:, [4, 5]]`."""
