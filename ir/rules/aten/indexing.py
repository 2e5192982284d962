"""Lookups and writes at places that an index names."""

from __future__ import annotations

from dataclasses import replace

from planish.ir.flow.call import Call, NotCovered, Rule
from planish.ir.flow.known import Known
from planish.ir.flow.laws import Arrangement, ByPlace, Picked, Written
from planish.ir.flow.lookup import indexed, lookup, progression
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    Expression,
    Opaque,
    Operand,
    Reads,
    Slice,
    Tag,
    aligned,
    everything,
    pointwise,
)
from planish.ir.rules.aten.movement import padded
from planish.ir.rules.aten.table import named


def index(call: Call) -> Expression:
    """`index(x, indices)`: NumPy's indexing by arrays."""
    value: Expression = call["self"]
    indices = list(call["indices"])
    masks = [(dim, one) for dim, one in enumerate(indices) if one is not None and _is_mask(one)]
    if masks:
        law = None
        if sum(one is not None for one in indices) == 1:
            ((dim, mask),) = masks
            law = Picked(Arrangement(mask.shape, mask), value, dim)
        why = "a mask picks as many as are true"
        return Opaque(call.shape, call.tensors(), why, "shape", law)
    if all(one is None for one in indices):
        return pointwise("copy", value)
    return indexed(value, tuple(indices), call.known, call.shape)


def _is_mask(value: Expression) -> bool:
    return str(getattr(value, "dtype", "")) in ("torch.bool", "torch.uint8")


def index_select(call: Call) -> Expression:
    """`index_select(x, dim, index)`."""
    value, one = call["self"], call["index"]
    rank = len(value.shape)
    dim = call.dim(call["dim"], rank)
    if rank and len(one.shape) == 1:
        return indexed(value, (*(None,) * dim, one), call.known, call.shape)
    places = (dim,) if one.shape else ()
    value, tag = lookup(value, dim, call.known(one), places, one.shape)
    tags = tuple(tag if place == dim else place for place in range(rank))
    return Reads(call.shape, (Operand(value, tags), Operand(one, places, dim)), "gather")


def embedding(call: Call) -> Expression:
    """`embedding(table, indices)`."""
    table, one = call["weight"], call["indices"]
    for name in ("padding_idx", "scale_grad_by_freq", "sparse"):
        call[name]
    rank = len(call.shape)
    places = tuple(range(rank - 1))
    table, tag = lookup(table, 0, call.known(one), places, one.shape)
    return Reads(call.shape, (Operand(table, (tag, rank - 1)), Operand(one, places, 0)), "gather")


def gather(call: Call) -> Expression:
    """`gather(x, dim, index)`: along the other dimensions each element reads its own place."""
    value, one = call["self"], call["index"]
    call["sparse_grad"]
    return gathered(value, call.dim(call["dim"], len(value.shape)), one, call.known(one))


def gathered(value: Expression, dim: int, one: Expression, known: Known | None) -> Expression:
    """Elements of `value` at `one` along `dim`."""
    rank = len(one.shape)
    for place in range(rank):
        if place != dim and value.shape[place] != one.shape[place]:
            value = Slice(value, place, 0, 1, one.shape[place])
    places = tuple(range(rank))
    value, tag = lookup(value, dim, known, places, one.shape)
    tags = tuple(tag if place == dim else place for place in places)
    return Reads(one.shape, (Operand(value, tags), Operand(one, places, dim)), "gather")


def scatter(call: Call) -> Expression:
    """`scatter`, `scatter_add`, `scatter_reduce(x, dim, index, source)`.

    An element reads itself and, since any source may be written to any place along `dim`, all of
    source and index along it.
    """
    value, one = call["self"], call["index"]
    rank = len(value.shape)
    dim = call.dim(call["dim"], rank)
    sources = _written(call, "src")
    return scattered(value, dim, one, sources, call.known(one))


def _written(call: Call, name: str) -> list[Expression]:
    """What is written: by its name, since it may be the very tensor that is written to."""
    source = call.get(name, call.get("value"))
    if source is None:
        raise NotCovered("no argument that is written")
    call.tensors()
    return [source] if isinstance(source, Expression) else []


def scattered(
    value: Expression,
    dim: int,
    one: Expression,
    sources: list[Expression],
    known: Known | None,
) -> Expression:
    """`value` with `sources` written at `one` along `dim`."""
    rank = len(value.shape)
    if rank == 0:
        return pointwise("scatter", value, one, *sources, shape=())
    operands = [aligned(value, rank)]
    counting = progression(known)
    in_order = (
        counting is not None
        and counting.steps[dim] == 1
        and not any(step != 0 for place, step in enumerate(counting.steps) if place != dim)
    )
    for number, other in enumerate((one, *sources)):
        part = other
        tags: list[Tag] = []
        for place in range(rank):
            if place == dim and not (in_order and counting is not None):
                tags.append("written")
                continue
            begin = counting.base if place == dim and counting is not None else 0
            part = _placed(part, place, begin, one.shape[place], value.shape[place])
            tags.append(place)
        operands.append(Operand(part, tuple(tags), dim if number == 0 else None))
    return Reads(value.shape, tuple(operands), "scatter")


def _placed(part: Expression, dim: int, begin: Count, size: Count, whole: Count) -> Expression:
    """The first `size` of `part` along `dim`, at `begin` of a dimension of size `whole`."""
    if part.shape[dim] != size:
        part = Slice(part, dim, 0, 1, size)
    return padded(part, dim, begin, whole - begin - size)


def index_put(call: Call) -> Expression:
    """`index_put(x, indices, values, accumulate)`."""
    value, indices, source = call["self"], list(call["indices"]), call["values"]
    law = Written(value, tuple(indices), source, bool(call["accumulate"]))
    rank = len(value.shape)
    given = [dim for dim, one in enumerate(indices) if one is not None]
    masks = [indices[dim] for dim in given if _is_mask(indices[dim])]
    if masks:
        return _masked(value, indices, source, masks, replace(law, masked=True))
    if not given:
        return pointwise("scatter", value, source, shape=value.shape)
    joint = max(len(indices[dim].shape) for dim in given)
    together = given == list(range(given[0], given[-1] + 1))
    first = given[0] if together else 0
    free = [dim for dim in range(rank) if dim not in given]
    # The shape of what is written: free dimensions around, or after, those of the indices.
    lead = [dim for dim in free if together and dim < first]
    after = free[len(lead) :]
    tags: list[Tag] = [*lead, *(f"written {n}" for n in range(joint)), *after]
    steps = _in_order(call, value, indices, given, joint)
    for n, dim in steps.items():
        tags[len(lead) + n] = dim
    written = Operand(source, tuple(tags[len(tags) - len(source.shape) :]))
    operands = [aligned(value, rank), written]
    for dim in given:
        shape = indices[dim].shape
        places = [tags[len(lead) + joint - len(shape) + n] for n in range(len(shape))]
        operands.append(Operand(indices[dim], tuple(places), dim))
    return Reads(value.shape, tuple(operands), "scatter", law=law)


def _in_order(
    call: Call,
    value: Expression,
    indices: list[Expression | None],
    given: list[int],
    joint: int,
) -> dict[int, int]:
    """Dimensions of the indices that count through a dimension of x from first to last."""
    found: dict[int, int] = {}
    for dim in given:
        one = indices[dim]
        counting = progression(call.known(one)) if one is not None else None
        if one is None or counting is None or counting.base != 0:
            continue
        moving = [n for n, step in enumerate(counting.steps) if step != 0]
        if len(moving) == 1 and counting.steps[moving[0]] == 1:
            number = moving[0] + joint - len(one.shape)
            if one.shape[moving[0]] == value.shape[dim] and number not in found:
                found[number] = dim
    return found


def _masked(
    value: Expression,
    indices: list[Expression | None],
    source: Expression,
    masks: list[Expression],
    law: Written,
) -> Expression:
    """Writing where a mask is true: one number is a selection, a list is dealt out in order."""
    if len([one for one in indices if one is not None]) != 1 or indices[0] is None:
        raise NotCovered("masks together with other indices")
    mask = masks[0]
    rank = len(value.shape)
    flags = Operand(mask, tuple(range(len(mask.shape))))
    if all(size == 1 for size in source.shape):
        return Reads(value.shape, (aligned(value, rank), flags, aligned(source, rank)), "scatter")
    dealt = everything("scatter", value.shape, mask, source)
    operands = (aligned(value, rank), flags, *dealt.operands)
    return Reads(value.shape, operands, "scatter", law=law)


def masked_scatter(call: Call) -> Expression:
    """`masked_scatter(x, mask, source)`: the source is dealt out over the whole tensor."""
    value, mask, source = call["self"], call["mask"], call["source"]
    dealt = everything("scatter", call.shape, mask, source)
    rank = len(call.shape)
    law = None
    if len(source.shape) == 1 and mask.shape == value.shape:
        law = Written(value, (mask,), source, masked=True)
    return Reads(call.shape, (aligned(value, rank), *dealt.operands), "scatter", law=law)


def index_add(call: Call) -> Expression:
    """`index_add`, `index_copy`, `index_fill(x, dim, index, source)`."""
    value, one = call["self"], call["index"]
    rank = len(value.shape)
    dim = call.dim(call["dim"], rank)
    others = _written(call, "source")
    tags = tuple("written" if place == dim else place for place in range(rank))
    operands = [aligned(value, rank), Operand(one, ("written",) if one.shape else (), dim)]
    operands += [Operand(other, tags if other.shape else ()) for other in others]
    law = None
    if others and others[0].shape and len(one.shape) == 1:
        law = Written(value, (*(None,) * dim, one), others[0], "add" in call.operator)
    return Reads(value.shape, tuple(operands), "scatter", law=law)


def one_hot(call: Call) -> Expression:
    """`one_hot(x, num_classes)`: a row of zeros and a one for each number."""
    value = call["self"]
    if call["num_classes"] == -1:
        raise NotCovered("as many classes as the data say")
    rank = len(value.shape)
    number = Operand(value, tuple(range(rank)))
    return Reads(call.shape, (number,), "one hot", law=ByPlace())


def embedding_bag(call: Call) -> tuple[Expression, ...]:
    """`_embedding_bag(table, indices, offsets)`: any bag may hold any of the indices."""
    table, *places = call.tensors()
    width = Operand(table, ("looked up", 1))
    listed = everything("gather", call.shape, *places).operands
    rest = (everything("gather", output.shape, *places) for output in call.outputs[1:])
    return (Reads(call.shape, (width, *listed), "gather"), *rest)


RULES: dict[str, Rule] = (
    named(index, "index.Tensor _unsafe_index.Tensor")
    | named(index_select, "index_select.default")
    | named(embedding, "embedding.default")
    | named(gather, "gather.default")
    | named(embedding_bag, "_embedding_bag.default _embedding_bag_forward_only.default")
    | named(
        scatter,
        """scatter.src scatter.value scatter.reduce scatter.value_reduce scatter_add.default
        scatter_reduce.two""",
    )
    | named(index_put, "index_put.default _unsafe_index_put.default")
    | named(
        index_add,
        "index_add.default index_copy.default index_fill.int_Scalar index_fill.int_Tensor",
    )
    | named(masked_scatter, "masked_scatter.default")
    | named(one_hot, "one_hot.default")
)
