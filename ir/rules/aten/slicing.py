"""Parts of tensors along a dimension: taken, written over, laid out as windows."""

from __future__ import annotations

from planish.ir.flow.call import Call, NotCovered, Rule, count
from planish.ir.flow.polynomial import Count, at_least
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Operand,
    Reads,
    Reshape,
    Slice,
    inserted,
    permuted,
    pointwise,
)
from planish.ir.rules.aten.table import named


def take_slice(call: Call) -> Expression:
    """`slice(x, dim, start, end, step)`."""
    value = call["self"]
    dim = call.dim(call["dim"], len(value.shape))
    call["end"]
    return Slice(value, dim, _start(call, value, dim), call["step"], call.shape[dim])


def _start(call: Call, value: Expression, dim: int) -> Count | None:
    """Where a slice begins, None if clamping makes that uncertain."""
    size = value.shape[dim]
    start, end = call["start"], call["end"]
    if start is None or start == 0:
        return 0
    if not isinstance(start, int) or start > 0:
        # Beyond the end the slice is empty; below 0 it counts from the end.
        return start if at_least(count(start), 0) else None
    if isinstance(size, int):
        return max(0, size + start)
    stop: Count = size
    if isinstance(end, int) and end < 0:
        stop = size + end
    # A negative start is clamped at 0 if the dimension is shorter. Where the exporter says that
    # the result has the full length, it was not.
    exact = call["step"] == 1 and stop - (size + start) == call.shape[dim]
    return size + start if exact else None


def select(call: Call) -> Expression:
    """`select(x, dim, index)`."""
    value = call["self"]
    dim = call.dim(call["dim"], len(value.shape))
    start = _place(call["index"], value.shape[dim])
    return Reshape(Slice(value, dim, start, 1, 1), call.shape)


def _place(index: object, size: Count) -> Count | None:
    """An index counted from the front, None if its sign is uncertain."""
    place = count(index)
    if isinstance(place, int) and place < 0:
        place = size + place
    return place if at_least(place, 0) else None


def narrow(call: Call) -> Expression:
    """`narrow(x, dim, start, length)`."""
    value = call["self"]
    dim = call.dim(call["dim"], len(value.shape))
    start, _ = _place(call["start"], value.shape[dim]), call["length"]
    return Slice(value, dim, start, 1, call.shape[dim])


def split(call: Call) -> tuple[Expression, ...]:
    """`split`, `split_with_sizes`, `chunk`, `tensor_split`: consecutive parts."""
    value, *_ = call.tensors()
    dim = call.dim(call["dim"], len(value.shape))
    parts: list[Expression] = []
    start: Count = 0
    for output in call.outputs:
        parts.append(Slice(value, dim, start, 1, output.shape[dim]))
        start = start + output.shape[dim]
    return tuple(parts)


def unbind(call: Call) -> tuple[Expression, ...]:
    """`unbind(x, dim)`: one part an index."""
    value = call["self"]
    dim = call.dim(call["dim"], len(value.shape))
    return tuple(
        Reshape(Slice(value, dim, index, 1, 1), output.shape)
        for index, output in enumerate(call.outputs)
    )


def slice_scatter(call: Call) -> Expression:
    """`slice_scatter(x, source, dim, start, end, step)`: x with one slice replaced."""
    value, source = call["self"], call["src"]
    dim = call.dim(call["dim"], len(value.shape))
    size, part = value.shape[dim], source.shape[dim]
    start, _ = count(call["start"] or 0), call["end"]
    if part == size:
        return pointwise("copy", source)  # a slice as long as the dimension is all of it
    if call["step"] != 1:
        raise NotCovered("a slice with a step")
    if isinstance(start, int) and start < 0:
        if not isinstance(size, int):
            raise NotCovered("a slice that may be clamped")
        start = max(0, size + start)
    if not at_least(start, 0) or source.shape[dim] == 0:
        raise NotCovered("a slice that may be empty, or begin before the first element")
    return _replaced(value, source, dim, start)


def _replaced(value: Expression, part: Expression, dim: int, start: Count) -> Expression:
    """`value` with a stretch along `dim` replaced by `part`."""
    stop = start + part.shape[dim]
    rest = Slice(value, dim, stop, 1, value.shape[dim] - stop)
    parts = (Slice(value, dim, 0, 1, start), part, rest)
    return Concat(tuple(one for one in parts if one.shape[dim] != 0), dim)


def select_scatter(call: Call) -> Expression:
    """`select_scatter(x, source, dim, index)`: x with one index of a dimension replaced."""
    value, source = call["self"], call["src"]
    dim = call.dim(call["dim"], len(value.shape))
    index = _place(call["index"], value.shape[dim])
    if index is None:
        raise NotCovered("an index that may count from the end")
    return _replaced(value, inserted(source, dim), dim, index)


def unfold(call: Call) -> Expression:
    """`unfold(x, dimension, size, step)`: windows along one dimension, their content last."""
    value = call["self"]
    rank = len(value.shape)
    dim = call["dimension"] % rank
    size, step = call["size"], call["step"]
    if size == step and value.shape[dim] == call.shape[dim] * size:
        parts = Reshape(value, (*value.shape[:dim], call.shape[dim], size, *value.shape[dim + 1 :]))
        order = [place for place in range(rank + 1) if place != dim + 1]
        return permuted(parts, [*order, dim + 1])
    tags = tuple("window" if place == dim else place for place in range(rank))
    return Reads(call.shape, (Operand(value, tags),), "window")


RULES: dict[str, Rule] = (
    named(take_slice, "slice.Tensor slice_copy.Tensor")
    | named(select, "select.int select_copy.int")
    | named(narrow, "narrow.default narrow_copy.default")
    | named(
        split,
        """split.Tensor split.sizes split_with_sizes.default split_copy.Tensor
        split_with_sizes_copy.default chunk.default tensor_split.sections""",
    )
    | named(unbind, "unbind.int unbind_copy.int")
    | named(slice_scatter, "slice_scatter.default")
    | named(select_scatter, "select_scatter.default")
    | named(unfold, "unfold.default unfold_copy.default")
)
