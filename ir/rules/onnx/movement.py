"""Operators that move elements under another shape or order: reshapes, permutations, joins."""

from __future__ import annotations

from collections.abc import Sequence

from planish.ir.flow.call import NotCovered
from planish.ir.flow.polynomial import Count, Polynomial, product, quotient
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Operand,
    Reads,
    Reshape,
    Shape,
    aligned,
    along,
    inserted,
    permuted,
    repeated,
)
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank
from planish.ir.rules.onnx.sizes import joined_shape, least


def reshape(call: OnnxCall) -> Expression:
    """`Reshape(x, shape)`: 0 keeps a size unless `allowzero`, -1 is what is left."""
    value = call.input(0)
    call.ignore("consumed_inputs")
    target = call.integers("shape") if call.version < 5 else call.numbers(1)
    keep = not call.attribute("allowzero", 0)
    return Reshape(value, resolved(value.shape, target or [], keep))


def resolved(old: Shape, target: Sequence[Count], keep: bool = True) -> Shape:
    """A shape with 0 and -1 replaced by what they stand for.

    Raises:
        NotCovered: if a size may turn out to be 0 or negative, and so to mean something else.
    """
    shape: list[Count] = []
    rest: int | None = None
    for place, size in enumerate(target):
        if size == -1 and rest is None:
            rest = place
            shape.append(1)
        elif size == 0 and keep:
            if place >= len(old):
                raise NotCovered("a size is kept that is not there")
            shape.append(old[place])
        elif size == 0 or (least(size) or 0) >= 1 or (place < len(old) and size == old[place]):
            shape.append(size)
        else:
            raise NotCovered(f"the size {size} may be 0 or negative")
    if rest is not None:
        whole, others = product(old), product(shape)
        if others == 0:
            raise NotCovered("a size is left open beside one that is 0")
        left = quotient(whole, others)
        if left is None:
            left = Polynomial.symbol(f"floor(({whole})/({others}))")
        shape[rest] = left
    return tuple(shape)


def flatten(call: OnnxCall) -> Expression:
    """`Flatten(x, axis)`: two dimensions, cut at `axis`."""
    value = call.input(0)
    rank = len(value.shape)
    axis = call.attribute("axis", 1)
    cut = axis if axis >= 0 else axis + rank
    if not 0 <= cut <= rank:
        raise NotCovered(f"axis {axis} of a tensor of {rank} dimensions")
    return Reshape(value, (product(value.shape[:cut]), product(value.shape[cut:])))


def _axes(call: OnnxCall, since: int) -> list[int] | None:
    """The axes: an attribute, an input from opset `since` on."""
    if call.version < since:
        return call.integers("axes")
    return call.axes(1) if call.given(1) else None


def squeeze(call: OnnxCall) -> Expression:
    """`Squeeze(x, axes)`: drops dimensions of size 1; all of them if none is named."""
    value = call.input(0)
    rank = len(value.shape)
    axes = _axes(call, 13)
    if axes is None:
        if any(isinstance(size, Polynomial) for size in value.shape):
            raise NotCovered("which sizes are 1 is not known beforehand")
        gone = {dim for dim in range(rank) if value.shape[dim] == 1}
    else:
        gone = {call.place(axis, rank) for axis in axes}
    return Reshape(value, tuple(n for dim, n in enumerate(value.shape) if dim not in gone))


def unsqueeze(call: OnnxCall) -> Expression:
    """`Unsqueeze(x, axes)`."""
    value = call.input(0)
    axes = _axes(call, 13)
    if axes is None:
        raise NotCovered("no axes")
    rank = len(value.shape) + len(axes)
    dims = {call.place(axis, rank) for axis in axes}
    if len(dims) != len(axes):
        raise NotCovered("an axis twice")
    return inserted(value, *dims)


def transpose(call: OnnxCall) -> Expression:
    """`Transpose(x, perm)`; without, in reverse."""
    value = call.input(0)
    rank = len(value.shape)
    order = call.integers("perm")
    if order is None:
        order = list(range(rank))[::-1]
    if sorted(order) != list(range(rank)):
        raise NotCovered("no permutation")
    return permuted(value, order)


def expand(call: OnnxCall) -> Expression:
    """`Expand(x, shape)`: broadcasting in both directions."""
    value = call.input(0)
    target = call.numbers(1)
    if any(least(size) is None for size in target):
        raise NotCovered("a size may be negative")
    shape = joined_shape([value.shape, tuple(target)])
    return Reads(shape, (aligned(value, len(shape)),), "copy")


def tile(call: OnnxCall) -> Expression:
    """`Tile(x, repeats)`; `Tile(x, tiles, axis)` in opset 1."""
    value = call.input(0)
    rank = len(value.shape)
    if call.version < 6:
        times: list[Count] = [1] * rank
        times[call.place(call.axes(2)[0], rank)] = call.numbers(1)[0]
    else:
        times = call.numbers(1)
    if len(times) != rank or any(least(number) is None for number in times):
        raise NotCovered("numbers of tiles that do not fit")
    return repeated(value, times)


def concat(call: OnnxCall) -> Expression:
    """`Concat(values, axis)`."""
    values = call.inputs()
    if not values:
        raise NotCovered("no input")
    rank = len(values[0].shape)
    axis = call.attribute("axis", 1) if call.version < 4 else call["axis"]
    if not isinstance(axis, int):
        raise NotCovered("no axis")
    return joined_along(values, call.place(axis, rank))


def joined_along(values: Sequence[Expression], dim: int) -> Expression:
    """Tensors one after another. Where other sizes differ in name, they have to be equal."""
    rank = len(values[0].shape)
    if any(len(value.shape) != rank for value in values):
        raise NotCovered("tensors of different rank")
    common = list(values[0].shape)
    for value in values[1:]:
        for place, size in enumerate(value.shape):
            if place != dim and size != common[place]:
                if isinstance(size, int) and isinstance(common[place], int):
                    raise NotCovered("sizes differ")
                common[place] = size if isinstance(size, int) else common[place]
    return Concat(tuple(_named_alike(value, common, dim) for value in values), dim)


def _named_alike(value: Expression, common: Sequence[Count], dim: int) -> Expression:
    """`value` with the common names of its sizes."""
    shape = tuple(n if d == dim else common[d] for d, n in enumerate(value.shape))
    return value if shape == value.shape else Reads(shape, (aligned(value, len(shape)),), "copy")


def depth_to_space(call: OnnxCall) -> Expression:
    """`DepthToSpace(x [N, C r², H, W], r)` to [N, C, H r, W r]."""
    value = of_rank(call.input(0), 4)
    r = call.attribute("blocksize", 1)
    mode = call.attribute("mode", "DCR")
    batch, channels, height, width = value.shape
    depth = quotient(channels, r * r)
    if depth is None or mode not in ("DCR", "CRD"):
        raise NotCovered("channels that the block does not divide")
    if mode == "DCR":
        parts = Reshape(value, (batch, r, r, depth, height, width))
        moved = permuted(parts, (0, 3, 4, 1, 5, 2))
    else:
        parts = Reshape(value, (batch, depth, r, r, height, width))
        moved = permuted(parts, (0, 1, 4, 2, 5, 3))
    return Reshape(moved, (batch, depth, height * r, width * r))


def space_to_depth(call: OnnxCall) -> Expression:
    """`SpaceToDepth(x [N, C, H r, W r], r)` to [N, C r², H, W]."""
    value = of_rank(call.input(0), 4)
    r = call.attribute("blocksize", 1)
    mode = call.attribute("mode", "DCR")
    batch, channels, height, width = value.shape
    high, wide = quotient(height, r), quotient(width, r)
    if high is None or wide is None or mode not in ("DCR", "CRD"):
        raise NotCovered("sizes that the block does not divide")
    parts = Reshape(value, (batch, channels, high, r, wide, r))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return Reshape(permuted(parts, order), (batch, channels * r * r, high, wide))


def reverse_sequence(call: OnnxCall) -> Expression:
    """`ReverseSequence(x, lengths)`: along the time of each sample."""
    value, lengths = call.input(0), call.input(1)
    rank = len(value.shape)
    time = call.place(call.attribute("time_axis", 0), rank)
    batch = call.place(call.attribute("batch_axis", 1), rank)
    reversed_ = along("window", value, (time,))
    own = Operand(lengths, (batch,))
    return Reads(value.shape, (*reversed_.operands, own), "window", frozenset({time}))


RULES = (
    named(reshape, "Reshape")
    | named(flatten, "Flatten")
    | named(squeeze, "Squeeze")
    | named(unsqueeze, "Unsqueeze")
    | named(transpose, "Transpose")
    | named(expand, "Expand")
    | named(tile, "Tile")
    | named(concat, "Concat")
    | named(depth_to_space, "DepthToSpace")
    | named(space_to_depth, "SpaceToDepth")
    | named(reverse_sequence, "ReverseSequence")
)
