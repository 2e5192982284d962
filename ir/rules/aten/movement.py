"""Operators that move elements: views, permutations, joins, padding."""

from __future__ import annotations

from collections.abc import Sequence

from planish.ir.flow.call import Call, Rule, count
from planish.ir.flow.laws import ByPlace
from planish.ir.flow.polynomial import Count, product, row_strides
from planish.ir.flow.vocabulary import (
    Concat,
    Diagonal,
    Expression,
    Fill,
    Opaque,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    aligned,
    along,
    inserted,
    permuted,
    pointwise,
    repeated,
    replace_at,
)
from planish.ir.rules.aten.table import named


def reshape(call: Call) -> Expression:
    """Any operator that only names another shape."""
    value, *_ = call.tensors()
    return Reshape(value, call.shape)


def expand(call: Call) -> Expression:
    """Broadcasting to the shape of the result."""
    value, *_ = call.tensors()
    return Reads(call.shape, (aligned(value, len(call.shape)),), "copy")


def permute(call: Call) -> Expression:
    """`permute(x, dims)`."""
    value = call["self"]
    rank = len(value.shape)
    return permuted(value, [dim % rank for dim in call["dims"]] if rank else [])


def transpose(call: Call) -> Expression:
    """`transpose(x, dim0, dim1)`; without dims the last two."""
    value = call["self"]
    rank = len(value.shape)
    if rank < 2:
        call.tensors()
        return pointwise("copy", value)
    pair = (rank - 2, rank - 1)
    if "transpose" in call.operator or "swap" in call.operator:
        names = ("dim0", "dim1") if "swapaxes" not in call.operator else ("axis0", "axis1")
        pair = (call[names[0]] % rank, call[names[1]] % rank)
    order = list(range(rank))
    if "numpy_T" in call.operator:
        return permuted(value, order[::-1])
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    return permuted(value, order)


def movedim(call: Call) -> Expression:
    """`movedim(x, source, destination)`."""
    value = call["self"]
    rank = len(value.shape)
    source = _several(call["source"], rank)
    destination = _several(call["destination"], rank)
    rest = iter(dim for dim in range(rank) if dim not in source)
    return permuted(
        value,
        [
            source[destination.index(place)] if place in destination else next(rest)
            for place in range(rank)
        ],
    )


def _several(dims: int | Sequence[int], rank: int) -> list[int]:
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]


def cat(call: Call) -> Expression:
    """`cat(tensors, dim)`; empty tensors of one dimension are left out, as torch does."""
    rank = len(call.shape)
    parts = [value for value in call["tensors"] if rank == 1 or value.shape != (0,)]
    return Concat(tuple(parts), call.dim(call["dim"], rank))


def stack(call: Call) -> Expression:
    """`stack(tensors, dim)`."""
    dim = call.dim(call["dim"], len(call.shape))
    return Concat(tuple(inserted(value, dim) for value in call["tensors"]), dim)


def flip(call: Call) -> Expression:
    """`flip(x, dims)`."""
    value: Expression = call["self"]
    for dim in call.dims(call["dims"], len(value.shape)):
        size = value.shape[dim]
        value = Slice(value, dim, size - 1, -1, size)
    return value


def roll(call: Call) -> Expression:
    """`roll(x, shifts, dims)`: neighbours read each other; without dims, all elements."""
    value = call["self"]
    call["shifts"]
    dims = call["dims"]
    return along("window", value, call.dims(dims or None, len(value.shape)))


def repeat(call: Call) -> Expression:
    """`repeat(x, repeats)` and `tile`."""
    value = call["self"]
    times = call["repeats"] if "repeat" in call.operator else call["dims"]
    times = [1] * (len(value.shape) - len(times)) + list(times)
    return repeated(value, [count(number) for number in times])


def repeat_interleave(call: Call) -> Expression:
    """`repeat_interleave(x, times, dim)` with a number of times: each element in turn."""
    value = call["self"]
    times = count(call["repeats"])
    call["output_size"]
    if call["dim"] is None:
        value = Reshape(value, (product(value.shape),))
    dim = call.dim(call["dim"] or 0, len(value.shape))
    spread = inserted(value, dim + 1)
    tags = tuple(range(len(spread.shape)))
    copies = Reads(replace_at(spread.shape, dim + 1, times), (Operand(spread, tags),), "copy")
    return Reshape(copies, replace_at(value.shape, dim, value.shape[dim] * times))


def diagonal(call: Call) -> Expression:
    """`diagonal(x, offset, dim1, dim2)`; off the main one by slicing first."""
    value: Expression = call["self"]
    rank = len(value.shape)
    first, second, offset = call["dim1"] % rank, call["dim2"] % rank, call["offset"]
    size = call.shape[-1]
    value = Slice(value, first, max(-offset, 0), 1, size)
    return Diagonal(Slice(value, second, max(offset, 0), 1, size), first, second)


def as_strided(call: Call) -> Expression:
    """The row-major layout is a reshape; any other reading of memory is not followed."""
    value = call["self"]
    call.tensors()
    strides = row_strides(call.shape)
    given = [count(number) for number in call["stride"]]
    wanted = zip(call.shape, strides, given, strict=True)
    whole = product(value.shape) == product(call.shape) and call.in_row_major_order("self")
    if whole and not call["storage_offset"] and all(n == 1 or a == b for n, a, b in wanted):
        return Reshape(value, call.shape)
    return Opaque(call.shape, (value,), "memory is read in another order than it was written")


def reinterpret(call: Call) -> Expression:
    """`view(x, dtype)`: the bits of each element, or of neighbours along the last dimension."""
    value, _ = call["self"], call["dtype"]
    if call.shape == value.shape:
        return pointwise("nonlinear", value)
    rank = len(value.shape)
    operand = Operand(value, (*range(rank - 1), "bits"))
    return Reads(call.shape, (operand,), "nonlinear", law=ByPlace())


def padded(value: Expression, dim: int, before: Count, after: Count) -> Expression:
    """`value` with constants before and after along `dim`; a negative number cuts."""
    size = value.shape[dim]
    cut = [-number if isinstance(number, int) and number < 0 else 0 for number in (before, after)]
    if any(cut):
        value = Slice(value, dim, cut[0], 1, size - cut[0] - cut[1])
    parts: list[Expression] = [value]
    if before != 0 and not cut[0]:
        parts.insert(0, Fill(replace_at(value.shape, dim, before)))
    if after != 0 and not cut[1]:
        parts.append(Fill(replace_at(value.shape, dim, after)))
    return Concat(tuple(parts), dim) if len(parts) > 1 else value


def constant_pad(call: Call) -> Expression:
    """`constant_pad_nd(x, pad, value)` and `pad`, which lists the last dimension first."""
    value: Expression = call["self"]
    call["value"]
    pads = [count(number) for number in call["pad"]]
    rank = len(value.shape)
    if "pad.default" in call.operator and call["mode"] != "constant":
        dims = [rank - 1 - number for number in range(len(pads) // 2)]
        return _fitted(along("window", value, dims), call.shape, dims)
    for number in range(len(pads) // 2):
        value = padded(value, rank - 1 - number, pads[2 * number], pads[2 * number + 1])
    return value


def mirror_pad(spatial: int) -> Rule:
    """Padding with neighbours, in the last `spatial` dimensions."""

    def rule(call: Call) -> Expression:
        value = call["self"]
        call["padding"]
        rank = len(value.shape)
        return _fitted(value, call.shape, range(rank - spatial, rank))

    return rule


def _fitted(value: Expression, shape: Shape, dims: Sequence[int]) -> Expression:
    """Reads whole `dims`, whose sizes change."""
    tags = tuple(f"whole{d}" if d in dims else d for d in range(len(shape)))
    return Reads(shape, (Operand(value, tags),), "window")


def pixel_shuffle(call: Call) -> Expression:
    """`pixel_shuffle(x [..., C r², H, W], r)` to [..., C, H r, W r]."""
    value, r = call["self"], call["upscale_factor"]
    *lead, _, height, width = value.shape
    channels = call.shape[-3]
    parts = Reshape(value, (*lead, channels, r, r, height, width))
    n = len(lead)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return Reshape(permuted(parts, order), call.shape)


def pixel_unshuffle(call: Call) -> Expression:
    """`pixel_unshuffle(x [..., C, H r, W r], r)` to [..., C r², H, W]."""
    value, r = call["self"], call["downscale_factor"]
    *lead, channels, _, _ = value.shape
    height, width = call.shape[-2:]
    parts = Reshape(value, (*lead, channels, height, r, width, r))
    n = len(lead)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    return Reshape(permuted(parts, order), call.shape)


def broadcast_tensors(call: Call) -> tuple[Expression, ...]:
    """Each to the common shape."""
    return tuple(
        Reads(output.shape, (aligned(value, len(output.shape)),), "copy")
        for value, output in zip(call["tensors"], call.outputs, strict=True)
    )


def meshgrid(call: Call) -> tuple[Expression, ...]:
    """`meshgrid(tensors)`: operand k varies along its own dimension."""
    values = call["tensors"]
    places = list(range(len(values)))
    if "indexing" in call.operator and call["indexing"] == "xy":
        places[:2] = places[1::-1]
    return tuple(
        Reads(output.shape, (Operand(value, (place,) if value.shape else ()),), "copy")
        for value, place, output in zip(values, places, call.outputs, strict=True)
    )


RULES: dict[str, Rule] = (
    named(
        reshape,
        """view.default _unsafe_view.default reshape.default _reshape_copy.default
        view_copy.default flatten.using_ints unflatten.int squeeze.default squeeze.dim squeeze.dims
        squeeze_copy.dim squeeze_copy.dims unsqueeze.default unsqueeze_copy.default view_as.default
        ravel.default""",
    )
    | named(expand, "expand.default expand_as.default broadcast_to.default expand_copy.default")
    | named(permute, "permute.default permute_copy.default")
    | named(
        transpose,
        """transpose.int t.default mT.default numpy_T.default transpose_copy.int t_copy.default
        swapaxes.default swapdims.default adjoint.default""",
    )
    | named(movedim, "movedim.int movedim.intlist moveaxis.int moveaxis.intlist")
    | named(cat, "cat.default concat.default concatenate.default")
    | named(stack, "stack.default")
    | named(flip, "flip.default")
    | named(roll, "roll.default")
    | named(repeat, "repeat.default tile.default")
    | named(repeat_interleave, "repeat_interleave.self_int")
    | named(diagonal, "diagonal.default diagonal_copy.default")
    | named(reinterpret, "view.dtype view_copy.dtype")
    | named(as_strided, "as_strided.default as_strided_copy.default")
    | named(constant_pad, "constant_pad_nd.default pad.default")
    | named(mirror_pad(1), "reflection_pad1d.default replication_pad1d.default")
    | named(mirror_pad(2), "reflection_pad2d.default replication_pad2d.default")
    | named(mirror_pad(3), "reflection_pad3d.default replication_pad3d.default")
    | named(pixel_shuffle, "pixel_shuffle.default")
    | named(pixel_unshuffle, "pixel_unshuffle.default")
    | named(broadcast_tensors, "broadcast_tensors.default")
    | named(meshgrid, "meshgrid.default meshgrid.indexing")
)
