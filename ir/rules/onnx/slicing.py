"""Operators that cut and fill: slices, splits, padding, crops."""

from __future__ import annotations

from collections.abc import Sequence

from planish.ir.flow.call import NotCovered
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Fill,
    Operand,
    Reads,
    Shape,
    Slice,
    replace_at,
)
from planish.ir.rules.onnx.call import OnnxCall, named, plain
from planish.ir.rules.onnx.sizes import at_least, ceiled, least, minimum

_FAR = 2**31 - 1
"""Ends as far away as this mean the end of the dimension."""


def take_slice(call: OnnxCall) -> Expression:
    """`Slice(x, starts, ends, axes, steps)`; attributes before opset 10."""
    value = call.input(0)
    rank = len(value.shape)
    if call.version < 10:
        starts: Sequence[Count] = call.integers("starts") or []
        ends: Sequence[Count] = call.integers("ends") or []
        axes, steps = call.integers("axes"), None
    else:
        starts, ends = call.numbers(1), call.numbers(2)
        axes = call.axes(3) if call.given(3) else None
        steps = call.axes(4) if call.given(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        value = sliced(value, call.place(axis, rank), start, end, step)
    return value


def sliced(value: Expression, dim: int, start: Count, end: Count, step: int) -> Expression:
    """`value[start:end:step]` along `dim`, with Python's negative numbers and clamping."""
    whole = value.shape[dim]
    if step == 0:
        raise NotCovered("a step of 0")
    if all(isinstance(number, int) for number in (whole, start, end)):
        first, stop, _ = slice(plain(start), plain(end), step).indices(plain(whole))
        return Slice(value, dim, first, step, len(range(first, stop, step)))
    if step < 0:
        from_end = start in (-1, whole - 1) or (isinstance(start, int) and start >= _FAR)
        if step == -1 and from_end and isinstance(end, int) and end <= -_FAR:
            return Slice(value, dim, whole - 1, -1, whole)
        raise NotCovered("a slice backwards of a size that is a symbol")
    begin = _clamped(start, whole)
    stop_at = _clamped(end, whole)
    if begin is not None and stop_at is not None and at_least(stop_at, begin):
        return Slice(value, dim, begin, step, ceiled(stop_at - begin, step))
    formula = f"sliced({whole}, {start}, {end}, {step})"
    return Slice(value, dim, begin, step, Polynomial.symbol(formula))


def _clamped(place: Count, whole: Count) -> Count | None:
    """A place of a slice between 0 and `whole`, None where that is not certain."""
    if isinstance(place, int) and place < 0:
        if place <= -_FAR:
            return 0
        return whole + place if at_least(whole + place, 0) else None
    if isinstance(place, int) and place >= _FAR:
        return whole
    if least(place) is None or (least(place) or 0) < 0:
        return None
    return minimum(place, whole)


def split(call: OnnxCall) -> tuple[Expression, ...]:
    """`Split(x, axis)` into parts of given sizes, or of equal ones."""
    value = call.input(0)
    dim = call.place(call.attribute("axis", 0), len(value.shape))
    whole, number = value.shape[dim], len(call.outputs)
    sizes: Sequence[Count] | None = call.integers("split") if call.version < 13 else None
    if (call.version >= 13 or call.version == 1) and call.given(1):
        sizes = call.numbers(1)
    call.ignore("num_outputs")
    if sizes is None:
        sizes = equal_parts(whole, number)
    if len(sizes) != number or any(least(size) is None for size in sizes):
        raise NotCovered("sizes of parts that do not fit")
    parts: list[Expression] = []
    start: Count = 0
    for size in sizes:
        parts.append(Slice(value, dim, start, 1, size))
        start = start + size
    return tuple(parts)


def equal_parts(whole: Count, number: int) -> list[Count]:
    """The sizes of as equal parts as can be, the last one smaller if need be."""
    size = ceiled(whole, number)
    if isinstance(whole, int) and isinstance(size, int):
        return [max(0, min(size, whole - place * size)) for place in range(number)]
    if size * number == whole:
        return [size] * number
    last = f"rest({whole}, {number})"
    return [size] * (number - 1) + [Polynomial.symbol(last)]


def pad(call: OnnxCall) -> Expression:
    """`Pad(x, pads, constant, axes)`: with a number, or with neighbours."""
    value = call.input(0)
    rank = len(value.shape)
    mode = call.attribute("mode", "constant")
    constant: Expression | None = None
    axes = list(range(rank))
    if call.version < 11:
        call.ignore("value")
        given = call.integers("pads" if call.version >= 2 else "paddings")
        pads: list[Count] = list(given or [])
    else:
        pads = call.numbers(1)
        constant = call.optional(2)
        if call.given(3):
            axes = [call.place(axis, rank) for axis in call.axes(3)]
    if len(pads) != 2 * len(axes):
        raise NotCovered("numbers of padding that do not fit")
    pairs = zip(axes, pads, pads[len(axes) :], strict=False)
    if mode == "constant":
        for dim, before, after in pairs:
            value = padded(value, dim, before, after, constant)
        return value
    return _mirrored(value, {dim: (before, after) for dim, before, after in pairs})


def padded(
    value: Expression, dim: int, before: Count, after: Count, constant: Expression | None = None
) -> Expression:
    """`value` with `constant`, or a number of the model's, around it; a negative number cuts.

    Raises:
        NotCovered: if it is not known whether a number is negative.
    """
    cut = [-plain(n) if isinstance(n, int) and n < 0 else 0 for n in (before, after)]
    if any((least(number) is None) for number in (before, after)):
        raise NotCovered("padding that may be negative")
    if any(cut):
        size = value.shape[dim] - cut[0] - cut[1]
        if not at_least(size, 0):
            raise NotCovered("padding that may cut everything")
        value = Slice(value, dim, cut[0], 1, size)
    parts: list[Expression] = [value]
    if before != 0 and not cut[0]:
        parts.insert(0, _filled(replace_at(value.shape, dim, before), constant))
    if after != 0 and not cut[1]:
        parts.append(_filled(replace_at(value.shape, dim, after), constant))
    return Concat(tuple(parts), dim) if len(parts) > 1 else value


def _filled(shape: Shape, constant: Expression | None) -> Expression:
    if constant is None:
        return Fill(shape)
    return Reads(shape, (Operand(constant, ("number",) * len(constant.shape)),), "copy")


def _mirrored(value: Expression, pads: dict[int, tuple[Count, Count]]) -> Expression:
    """Padding with neighbours: each element reads whole the dimensions that are padded."""
    shape = list(value.shape)
    tags: list[int | str] = list(range(len(shape)))
    for dim, (before, after) in pads.items():
        if before != 0 or after != 0:
            if least(before) is None or least(after) is None:
                raise NotCovered("padding that may be negative")
            shape[dim] = shape[dim] + before + after
            tags[dim] = f"padded{dim}"
    return Reads(tuple(shape), (Operand(value, tuple(tags)),), "window")


def center_crop_pad(call: OnnxCall) -> Expression:
    """`CenterCropPad(x, shape)`: cuts or pads around the centre."""
    value = call.input(0)
    rank = len(value.shape)
    target = call.numbers(1)
    axes = call.integers("axes")
    dims = list(range(rank)) if axes is None else [call.place(axis, rank) for axis in axes]
    for dim, size in zip(dims, target, strict=True):
        whole = value.shape[dim]
        if whole == size:
            continue
        more = plain(size - whole)
        if more < 0:
            value = Slice(value, dim, -more // 2, 1, size)
        else:
            value = padded(value, dim, more // 2, more - more // 2)
    return value


RULES = (
    named(take_slice, "Slice")
    | named(split, "Split")
    | named(pad, "Pad")
    | named(center_crop_pad, "CenterCropPad")
)
