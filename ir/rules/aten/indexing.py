"""Lookups and writes at places that an index names."""

from __future__ import annotations

from itertools import pairwise

from planish.ir.flow.call import Call, NotCovered, Rule
from planish.ir.flow.known import Counting, Known, Numbers
from planish.ir.flow.polynomial import Count, at_least
from planish.ir.flow.vocabulary import (
    Expression,
    Opaque,
    Operand,
    Reads,
    Shape,
    Slice,
    Tag,
    aligned,
    everything,
    pointwise,
)
from planish.ir.rules.aten.movement import padded
from planish.ir.rules.aten.table import named


def progression(known: Known | None) -> Counting | None:
    """An index as counting: numbers in arithmetic progression along one dimension are that too."""
    if isinstance(known, Counting):
        return known
    if not isinstance(known, Numbers) or any(isinstance(x, bool) for x in known.array.flat):
        return None
    if known.array.size == 1:
        return Counting(known.array.flat[0], (0,) * known.array.ndim)
    lengths = [size for size in known.array.shape if size != 1]
    if len(lengths) != 1:
        return None
    flat = list(known.array.flat)
    step = flat[1] - flat[0]
    if any(after - before != step for before, after in pairwise(flat)):
        return None
    steps = tuple(step if size != 1 else 0 for size in known.array.shape)
    return Counting(flat[0], steps)


def lookup(
    value: Expression, dim: int, known: Known | None, places: tuple[Tag, ...], index_shape: Shape
) -> tuple[Expression, Tag]:
    """How `value` is read along `dim` by an index: what of it, and along which dimension.

    Args:
        value: what is looked up.
        dim: of `value`.
        known: what is known of the index.
        places: the dimension of the result that each dimension of the index lies along.
        index_shape: of the index.

    Returns:
        `value`, cut to what the index reaches in order, with the dimension of the result it then
        lies along; or as it was, with a name that says that it is read whole.
    """
    counting = progression(known)
    whole = (value, f"looked up {dim}")
    if counting is None:
        return whole
    size = value.shape[dim]
    moving = [k for k, step in enumerate(counting.steps) if step != 0 and index_shape[k] != 1]
    base = counting.base
    if isinstance(base, int) and base < 0:
        if moving:
            return whole  # indices that wrap around
        base = size + base
    if not moving:
        start = base if at_least(base, 0) else None
        return Slice(value, dim, start, 1, 1), f"picked {dim}"
    step = counting.steps[moving[0]]
    if len(moving) > 1 or not isinstance(step, int):
        return whole
    last = base + step * (index_shape[moving[0]] - 1)
    if not (at_least(base, 0) and at_least(last, 0)):
        return whole  # some of them may wrap around
    return Slice(value, dim, base, step, index_shape[moving[0]]), places[moving[0]]


def index(call: Call) -> Expression:
    """`index(x, indices)`: NumPy's indexing by arrays."""
    value: Expression = call["self"]
    indices = list(call["indices"])
    if any(_is_mask(one) for one in indices if one is not None):
        return Opaque(call.shape, call.tensors(), "a mask picks as many as are true", "shape")
    given = [dim for dim, one in enumerate(indices) if one is not None]
    if not given:
        return pointwise("copy", value)
    joint = max(len(indices[dim].shape) for dim in given)
    together = given == list(range(given[0], given[-1] + 1))
    first = given[0] if together else 0
    looked: list[Expression] = []
    tags: list[Tag] = []
    free = iter([n for n in range(len(call.shape)) if not first <= n < first + joint])
    operands: list[Operand] = []
    for dim in range(len(value.shape)):
        if dim not in given:
            tags.append(next(free))
            continue
        one = indices[dim]
        places = tuple(range(first + joint - len(one.shape), first + joint))
        value, tag = lookup(value, dim, call.known(one), places, one.shape)
        tags.append(tag)
        looked.append(one)
        operands.append(Operand(one, places))
    return Reads(call.shape, (Operand(value, tuple(tags)), *operands), "gather")


def _is_mask(value: Expression) -> bool:
    return str(getattr(value, "dtype", "")) in ("torch.bool", "torch.uint8")


def index_select(call: Call) -> Expression:
    """`index_select(x, dim, index)`."""
    value, one = call["self"], call["index"]
    rank = len(value.shape)
    dim = call.dim(call["dim"], rank)
    places = (dim,) if one.shape else ()
    value, tag = lookup(value, dim, call.known(one), places, one.shape)
    tags = tuple(tag if place == dim else place for place in range(rank))
    return Reads(call.shape, (Operand(value, tags), Operand(one, places)), "gather")


def embedding(call: Call) -> Expression:
    """`embedding(table, indices)`."""
    table, one = call["weight"], call["indices"]
    for name in ("padding_idx", "scale_grad_by_freq", "sparse"):
        call[name]
    rank = len(call.shape)
    places = tuple(range(rank - 1))
    table, tag = lookup(table, 0, call.known(one), places, one.shape)
    return Reads(call.shape, (Operand(table, (tag, rank - 1)), Operand(one, places)), "gather")


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
    return Reads(one.shape, (Operand(value, tags), Operand(one, places)), "gather")


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
    for other in (one, *sources):
        part = other
        tags: list[Tag] = []
        for place in range(rank):
            if place == dim and not (in_order and counting is not None):
                tags.append("written")
                continue
            begin = counting.base if place == dim and counting is not None else 0
            part = _placed(part, place, begin, one.shape[place], value.shape[place])
            tags.append(place)
        operands.append(Operand(part, tuple(tags)))
    return Reads(value.shape, tuple(operands), "scatter")


def _placed(part: Expression, dim: int, begin: Count, size: Count, whole: Count) -> Expression:
    """The first `size` of `part` along `dim`, at `begin` of a dimension of size `whole`."""
    if part.shape[dim] != size:
        part = Slice(part, dim, 0, 1, size)
    return padded(part, dim, begin, whole - begin - size)


def index_put(call: Call) -> Expression:
    """`index_put(x, indices, values, accumulate)`."""
    value, indices, source = call["self"], list(call["indices"]), call["values"]
    call["accumulate"]
    rank = len(value.shape)
    given = [dim for dim, one in enumerate(indices) if one is not None]
    masks = [indices[dim] for dim in given if _is_mask(indices[dim])]
    if masks:
        return _masked(value, indices, source, masks)
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
        operands.append(Operand(indices[dim], tuple(places)))
    return Reads(value.shape, tuple(operands), "scatter")


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
    return Reads(value.shape, (aligned(value, rank), flags, *dealt.operands), "scatter")


def masked_scatter(call: Call) -> Expression:
    """`masked_scatter(x, mask, source)`: the source is dealt out over the whole tensor."""
    value, mask, source = call["self"], call["mask"], call["source"]
    dealt = everything("scatter", call.shape, mask, source)
    rank = len(call.shape)
    return Reads(call.shape, (aligned(value, rank), *dealt.operands), "scatter")


def index_add(call: Call) -> Expression:
    """`index_add`, `index_copy`, `index_fill(x, dim, index, source)`."""
    value, one = call["self"], call["index"]
    rank = len(value.shape)
    dim = call.dim(call["dim"], rank)
    others = _written(call, "source")
    tags = tuple("written" if place == dim else place for place in range(rank))
    operands = [aligned(value, rank), Operand(one, ("written",) if one.shape else ())]
    operands += [Operand(other, tags if other.shape else ()) for other in others]
    return Reads(value.shape, tuple(operands), "scatter")


def data_sized(call: Call) -> tuple[Expression, ...]:
    """Operators whose result is as long as the data say."""
    why = "the size of the result depends on the data"
    return tuple(Opaque(output.shape, call.tensors(), why, "shape") for output in call.outputs)


def host_read(call: Call) -> Expression:
    """`item`: a number for the host, which decides what runs next."""
    return everything("statistic", call.shape, *call.tensors())


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
    | named(
        data_sized,
        """nonzero.default masked_select.default unique_consecutive.default _unique2.default
        repeat_interleave.Tensor repeat_interleave.self_Tensor unique_dim.default
        nonzero_static.default""",
    )
    | named(host_read, "_local_scalar_dense.default item.default equal.default is_nonzero.default")
)
