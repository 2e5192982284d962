"""Elements that data pick: how many there are, and which, is known only in a run."""

from __future__ import annotations

from planish.ir.flow.call import Call, Rule
from planish.ir.flow.laws import Arrangement, Picked, Places
from planish.ir.flow.vocabulary import (
    Expression,
    Opaque,
    everything,
)
from planish.ir.rules.aten.table import named


def data_sized(call: Call) -> tuple[Expression, ...]:
    """Operators whose result is as long as the data say."""
    why = "the size of the result depends on the data"
    return tuple(Opaque(output.shape, call.tensors(), why, "shape") for output in call.outputs)


def nonzero(call: Call) -> Expression:
    """`nonzero(x)`: the places [N, rank] where x is not zero."""
    mask = call["self"]
    law = Places(Arrangement(mask.shape, mask), 1) if mask.shape else None
    why = "the size of the result depends on the data"
    return Opaque(call.shape, (mask,), why, "shape", law)


def nonzero_by_column(call: Call) -> tuple[Expression, ...]:
    """`where(x)`: the places where x is not zero, a list for each dimension."""
    mask = call["condition"]
    why = "the size of the result depends on the data"
    places = Arrangement(mask.shape, mask)
    return tuple(
        Opaque(one.shape, (mask,), why, "shape", Places(places, None, n) if mask.shape else None)
        for n, one in enumerate(call.outputs)
    )


def masked_select(call: Call) -> Expression:
    """`masked_select(x, mask)`: a list of the elements where the mask is true."""
    value, mask = call["self"], call["mask"]
    law = Picked(Arrangement(mask.shape, mask), value) if value.shape == mask.shape else None
    why = "the size of the result depends on the data"
    return Opaque(call.shape, (value, mask), why, "shape", law)


def host_read(call: Call) -> Expression:
    """`item`: a number for the host, which decides what runs next."""
    return everything("statistic", call.shape, *call.tensors())


RULES: dict[str, Rule] = (
    named(
        data_sized,
        """unique_consecutive.default _unique2.default
        repeat_interleave.Tensor repeat_interleave.self_Tensor unique_dim.default
        nonzero_static.default""",
    )
    | named(nonzero, "nonzero.default")
    | named(nonzero_by_column, "where.default")
    | named(masked_select, "masked_select.default")
    | named(host_read, "_local_scalar_dense.default item.default equal.default is_nonzero.default")
)
