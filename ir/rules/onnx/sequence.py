"""Sequences of tensors, where their lengths are known."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered
from planish.ir.flow.known import Known, numbers
from planish.ir.flow.vocabulary import Expression, Fill, Reshape, Slice, inserted, pointwise
from planish.ir.rules.onnx.call import Items, OnnxCall, OnnxLearn, named, plain
from planish.ir.rules.onnx.movement import joined_along

_LONGEST = 1024


def construct(call: OnnxCall) -> Expression:
    """`SequenceConstruct` and `SequenceEmpty`."""
    call.ignore("dtype")
    return Items(tuple(call.inputs()))


def at(call: OnnxCall) -> Expression:
    """`SequenceAt(sequence, position)`."""
    return pointwise("copy", call.sequence(0)[call.integer(1)])


def insert(call: OnnxCall) -> Expression:
    """`SequenceInsert(sequence, tensor, position)`; at the end without a position."""
    parts = list(call.sequence(0))
    place = call.integer(2) if call.given(2) else len(parts)
    if not -len(parts) <= place <= len(parts):
        raise NotCovered("a position outside the sequence")
    place = place + len(parts) if place < 0 else place
    return Items((*parts[:place], call.input(1), *parts[place:]))


def erase(call: OnnxCall) -> Expression:
    """`SequenceErase(sequence, position)`; the last one without a position."""
    parts = list(call.sequence(0))
    del parts[call.integer(1) if call.given(1) else -1]
    return Items(tuple(parts))


def length(call: OnnxCall) -> Expression:
    """`SequenceLength(sequence)`."""
    call.sequence(0)
    return Fill(())


def join(call: OnnxCall) -> Expression:
    """`ConcatFromSequence(sequence, axis, new_axis)`."""
    parts = list(call.sequence(0))
    axis = call["axis"]
    if not parts or not isinstance(axis, int):
        raise NotCovered("nothing to join")
    rank = len(parts[0].shape)
    if call.attribute("new_axis", 0):
        dim = call.place(axis, rank + 1)
        return joined_along([inserted(part, dim) for part in parts], dim)
    return joined_along(parts, call.place(axis, rank))


def split(call: OnnxCall) -> Expression:
    """`SplitToSequence(x, sizes, axis)`: without sizes one part an index."""
    value = call.input(0)
    dim = call.place(call.attribute("axis", 0), len(value.shape))
    whole = plain(value.shape[dim])
    keep = bool(call.attribute("keepdims", 1)) or call.given(1)
    sizes = [1] * min(whole, _LONGEST + 1)
    if call.given(1):
        one = call.input(1)
        given = call.axes(1)
        if one.shape:
            sizes = given
        elif given[0] < 1:
            raise NotCovered("parts of no elements")
        else:
            full, rest = divmod(whole, given[0])
            sizes = [given[0]] * full + ([rest] if rest else [])
    if len(sizes) > _LONGEST:
        raise NotCovered("a sequence this long")
    parts: list[Expression] = []
    start = 0
    for size in sizes:
        part: Expression = Slice(value, dim, start, 1, size)
        shape = (*value.shape[:dim], *value.shape[dim + 1 :])
        parts.append(part if keep else Reshape(part, shape))
        start += size
    return Items(tuple(parts))


RULES = (
    named(construct, "SequenceConstruct SequenceEmpty")
    | named(at, "SequenceAt")
    | named(insert, "SequenceInsert")
    | named(erase, "SequenceErase")
    | named(length, "SequenceLength")
    | named(join, "ConcatFromSequence")
    | named(split, "SplitToSequence")
)


def _length(call: OnnxCall) -> Known | None:
    return numbers(len(call.sequence(0)))


LEARN: dict[tuple[str, str], OnnxLearn] = {("", "SequenceLength"): _length}
