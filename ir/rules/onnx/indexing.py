"""Lookups and writes at places that an index names, and sizes that data decide."""

from __future__ import annotations

from dataclasses import replace

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.known import Counting, Known
from planish.ir.flow.laws import Arrangement, Looked, Picked, Places, Written
from planish.ir.flow.lookup import indexed, lookup, progression
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Opaque,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    Tag,
    Value,
    aligned,
    pointwise,
    replace_at,
)
from planish.ir.rules.aten.indexing import gathered, scattered
from planish.ir.rules.onnx.call import OnnxCall, named
from planish.ir.rules.onnx.sizes import at_least, least


def gather(call: OnnxCall) -> Expression:
    """`Gather(x, index, axis)`: the dimensions of the index take the place of `axis`."""
    value, one = call.input(0), call.input(1)
    dim = call.place(call.attribute("axis", 0), len(value.shape))
    shape = (*value.shape[:dim], *one.shape, *value.shape[dim + 1 :])
    return indexed(value, (*(None,) * dim, one), call.known, shape)


def gather_elements(call: OnnxCall) -> Expression:
    """`GatherElements(x, index, axis)`: along other dimensions each element has its place."""
    value, one = call.input(0), call.input(1)
    rank = len(value.shape)
    if len(one.shape) != rank or rank == 0:
        raise NotCovered("an index of another rank")
    dim = call.place(call.attribute("axis", 0), rank)
    return gathered(value, dim, one, call.known(one))


def column(one: Expression, number: int, call: OnnxCall) -> Expression:
    """One coordinate of places."""
    last = len(one.shape) - 1
    shape = one.shape[:-1]
    joined = call.made.get(one) if isinstance(one, Value) else None
    if isinstance(joined, Concat) and joined.dim == last:
        # Coordinates are mostly put together just before, and each is known better by itself.
        for part in joined.operands:
            size = part.shape[last]
            if not isinstance(size, int):
                break
            if number < size:
                one = part
                break
            number -= size
    return Reshape(Slice(one, last, number, 1, 1), shape)


def gather_nd(call: OnnxCall) -> Expression:
    """`GatherND(x, places [..., k], batch_dims)`."""
    value, one = call.input(0), call.input(1)
    batch = call.attribute("batch_dims", 0)
    depth = one.shape[-1]
    if not isinstance(depth, int) or batch + depth > len(value.shape):
        raise NotCovered("places of so many coordinates")
    joint = len(one.shape) - 1
    shape = (*one.shape[:-1], *value.shape[batch + depth :])
    tags: list[Tag] = list(range(batch))
    columns = tuple(column(one, number, call) for number in range(depth))
    law = Looked(value, columns) if batch == 0 else None
    for number, each in enumerate(columns):
        places = tuple(range(joint))
        value, tag = lookup(value, batch + number, call.known(each), places, each.shape)
        tags.append(tag)
    tags += range(joint, len(shape))
    index = Operand(one, (*range(joint), "coordinate"))
    return Reads(shape, (Operand(value, tuple(tags)), index), "gather", law=law)


def one_hot(call: OnnxCall) -> Expression:
    """`OneHot(indices, depth, values [2], axis)`."""
    indices, values = call.input(0), call.input(2)
    rank = len(indices.shape) + 1
    dim = call.place(call.attribute("axis", -1), rank)
    floats = call.floats(1)
    depth = int(floats[0]) if floats else call.numbers(1)[0]
    if (least(depth) or 0) < 0:
        raise NotCovered("a depth that may be negative")
    tags = tuple(place for place in range(rank) if place != dim)
    shape = (*indices.shape[:dim], depth, *indices.shape[dim:])
    operands = (Operand(indices, tags), Operand(values, ("which",)))
    return Reads(shape, operands, "one hot")


def scatter_elements(call: OnnxCall) -> Expression:
    """`ScatterElements(x, index, updates, axis)`: any update may reach any place along `axis`."""
    value, one, updates = call.input(0), call.input(1), call.input(2)
    call.ignore("reduction")  # whether the last one wins or all are added: all may be read
    rank = len(value.shape)
    if len(one.shape) != rank or rank == 0:
        raise NotCovered("an index of another rank")
    dim = call.place(call.attribute("axis", 0), rank)
    return scattered(value, dim, one, [updates], _forward(call.known(one), one, value.shape[dim]))


def _forward(known: Known | None, one: Expression, whole: Count) -> Known | None:
    """An index that is known not to count from the end, nor to leave the dimension."""
    counting = progression(known)
    if counting is None or (least(counting.base) or 0) < 0:
        return None
    moving = [n for n, step in enumerate(counting.steps) if step != 0]
    reach = one.shape[moving[0]] if len(moving) == 1 else 1
    return counting if at_least(whole, counting.base + reach) else None


def scatter_nd(call: OnnxCall) -> Expression:
    """`ScatterND(x, places [..., k], updates)`: x, overwritten or added to.

    Places that count through whole dimensions keep the updates in order. Of others each element
    may read any, several at once where a reduction adds them.
    """
    value, one, updates = call.input(0), call.input(1), call.input(2)
    reduction = call.attribute("reduction", "none")
    rank, joint, depth = len(value.shape), len(one.shape) - 1, one.shape[-1]
    if not isinstance(depth, int) or depth > rank:
        raise NotCovered("places of so many coordinates")
    tags: list[Tag] = [f"written {n}" for n in range(joint)]
    columns = tuple(column(one, number, call) for number in range(depth))
    for number, each in enumerate(columns):
        place = _counted(progression(call.known(each)), each.shape, value.shape[number])
        if place is not None and isinstance(tags[place], str):
            tags[place] = number
    index = Operand(one, (*tags, "coordinate"))
    written = Operand(updates, (*tags, *range(depth, rank)))
    law = None
    if reduction in ("none", "add"):
        law = Written(value, columns, updates, reduction == "add")
    return Reads(value.shape, (aligned(value, rank), written, index), "scatter", law=law)


def _counted(known: Counting | None, shape: Shape, whole: Count) -> int | None:
    """The dimension of an index along which it counts through a whole dimension, if any."""
    if known is None or known.base != 0:
        return None
    moving = [n for n, step in enumerate(known.steps) if step != 0]
    if len(moving) != 1 or known.steps[moving[0]] != 1 or shape[moving[0]] != whole:
        return None
    return moving[0]


def tensor_scatter(call: OnnxCall) -> Expression:
    """`TensorScatter(cache [B, ...], update, write_indices [B], axis)`: each sample its own."""
    value, update, places = call.input(0), call.input(1), call.optional(2)
    call.ignore("mode")
    rank = len(value.shape)
    dim = call.place(call.attribute("axis", -2), rank)
    tags = tuple("written" if place == dim else place for place in range(rank))
    operands = [aligned(value, rank), Operand(update, tags)]
    if places is not None:
        operands.append(Operand(places, (0,)))
    return Reads(value.shape, tuple(operands), "scatter")


def data_sized(call: OnnxCall, *shapes: Shape) -> tuple[Opaque, ...]:
    """Results that are as long as the data say."""
    why = "the size of the result depends on the data"
    values = call.tensors()
    return tuple(
        Opaque(shape, values, why, "shape") for shape, _ in zip(shapes, call.outputs, strict=False)
    )


def compress(call: OnnxCall) -> Result:
    """`Compress(x, condition, axis)`: what a mask picks."""
    value, axis = call.input(0), call["axis"]
    if axis is None:
        return data_sized(call, (call.fresh(),))
    dim = call.place(axis, len(value.shape))
    mask = call.input(1)
    law = None
    if mask.shape == (value.shape[dim],):  # it may also be shorter
        law = Picked(Arrangement(mask.shape, mask), value, dim)
    (read,) = data_sized(call, replace_at(value.shape, dim, call.fresh()))
    return replace(read, law=law)


def nonzero(call: OnnxCall) -> Result:
    """`NonZero(x)`: the places [rank, N] where x is not zero."""
    mask = call.input(0)
    (read,) = data_sized(call, (max(len(mask.shape), 1), call.fresh()))
    return replace(read, law=Places(Arrangement(mask.shape, mask), 0)) if mask.shape else read


def unique(call: OnnxCall) -> Result:
    """`Unique(x, axis)`: values, where they are first, where each is, how often."""
    value, axis = call.input(0), call["axis"]
    number = call.fresh()
    if axis is None:
        return data_sized(call, (number,), (number,), (call.fresh(),), (number,))
    dim = call.place(axis, len(value.shape))
    shape = replace_at(value.shape, dim, number)
    return data_sized(call, shape, (number,), (value.shape[dim],), (number,))


def suppress(call: OnnxCall) -> Result:
    """`NonMaxSuppression`: one list of boxes for all pictures."""
    return data_sized(call, (call.fresh(), 3))


def string_split(call: OnnxCall) -> Result:
    """`StringSplit(x)`: as wide as the longest element; and how many words each has."""
    value = call.input(0)
    (words,) = data_sized(call, (*value.shape, call.fresh()))[:1]
    return (words, pointwise("nonlinear", value))[: len(call.outputs)]


def string_normalizer(call: OnnxCall) -> Result:
    """`StringNormalizer(x)`: drops elements that are stop words."""
    rank = len(call.input(0).shape)
    return data_sized(call, (*(1,) * (rank - 1), call.fresh()))


def image_decoder(call: OnnxCall) -> Result:
    """`ImageDecoder(bytes)`: one picture."""
    return data_sized(call, (call.fresh(), call.fresh(), call.fresh()))


def tf_idf(call: OnnxCall) -> Expression:
    """`TfIdfVectorizer(x [C] or [N, C])`: counts of each row."""
    value = call.input(0)
    call.ignore(*_TF_IDF)
    places = call.integers("ngram_indexes") or [0]
    rank = len(value.shape)
    tags = (*range(rank - 1), "word")
    return Reads((*value.shape[:-1], max(places) + 1), (Operand(value, tags),), "statistic")


_TF_IDF = [
    "max_gram_length",
    "max_skip_count",
    "min_gram_length",
    "mode",
    "ngram_counts",
    "pool_int64s",
    "pool_strings",
    "weights",
]

RULES = (
    named(gather, "Gather")
    | named(gather_elements, "GatherElements")
    | named(gather_nd, "GatherND")
    | named(one_hot, "OneHot")
    | named(scatter_elements, "ScatterElements Scatter")
    | named(scatter_nd, "ScatterND")
    | named(tensor_scatter, "TensorScatter")
    | named(compress, "Compress")
    | named(nonzero, "NonZero")
    | named(unique, "Unique")
    | named(suppress, "NonMaxSuppression")
    | named(string_split, "StringSplit")
    | named(string_normalizer, "StringNormalizer")
    | named(image_decoder, "ImageDecoder")
    | named(tf_idf, "TfIdfVectorizer")
)
