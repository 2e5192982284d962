"""Calls of the operators that look up and write where an index says."""

from __future__ import annotations

from typing import Any

import torch

from support.refute import Sample, Stored
from support.tensors import b, count, f, i, k

Call = tuple[Any, ...]

S = (3, 3, 3)
"""A shape whose dimensions cannot be told apart by size."""

FLIPPED = Stored(torch.arange(2, -1, -1))
WRAPPED = Stored(torch.tensor([1, 0, -1]))
STRIDED = Stored(torch.tensor([0, 2]))
GRID = Stored(torch.arange(3)[:, None] + torch.arange(3))
NARROW = Stored(torch.arange(3, dtype=torch.int32))

LOOKUPS: list[Call] = [
    (f(3, 4), [count(3)]),
    (f(3, 4), [None, i(4, 2)]),
    (f(3, 3), [count(3), count(3)]),
    (f(3, 3), [count(3, 3, 1), count(3)]),
    (f(3, 3), [count(3), count(3, 3, 1)]),
    (f(3, 4), [count(3), i(4, 3)]),
    (f(3, 4), [count(3, 3, 1), i(4, 3, 2)]),
    (f(*S), [count(3), None, count(3)]),
    (f(*S), [i(3, 3), None, count(3)]),
    (f(*S), [None, count(3), i(3, 3)]),
    (f(*S), [None, i(3, 3, 3)]),
    (f(*S), [count(3, 3, 1), None, i(3, 2)]),
    (f(2, 2, 2, 2), [None, i(2, 2), None, count(2)]),
    (f(3, 4), [FLIPPED]),
    (f(3, 4), [WRAPPED]),
    (f(4, 4), [STRIDED, None]),
    (f(3, 4), [k(-1)]),
    (f(3, 4), [k(1, 1, 1)]),
    (f(3, 4), [k(0, 2, 1)]),
    (f(5, 4), [GRID]),
    (f(3, 4), [NARROW]),
    (f(4, 2), [Stored(torch.tensor(-2))]),
    (f(3, 3), [i(3, 3), i(3, 3, 1)]),
    (f(4, 2), [Stored(torch.tensor([-4, -3, -2, -1]))]),
]

CALLS: dict[str, list[Call]] = {
    "index.Tensor": [*LOOKUPS, (f(3, 4), [b(3)]), (f(3, 4), [b(3, 4)])],
    "_unsafe_index.Tensor": LOOKUPS,
    "index_select.default": [
        (f(3, 4), 0, count(3)),
        (f(3, 3), -1, i(3, 3)),
        (f(3, 3), 0, FLIPPED),
        (f(4, 4), 0, STRIDED),
        (f(3, 4), 0, Stored(torch.tensor(1))),
        (f(3, 4), 0, k(2)),
    ],
    "embedding.default": [
        (f(3, 4), i(3, 3)),
        (f(3, 3), i(3, 3, 3)),
        (f(3, 3), count(3)),
        (f(4, 3), i(4, 2), 1),
    ],
    **{
        f"{name}.default": [
            (f(3, 4), i(3, 5), torch.tensor([0, 2])),
            (f(3, 3), i(3, 3), torch.arange(3), False, 1),
        ]
        for name in ("_embedding_bag", "_embedding_bag_forward_only")
    },
    "gather.default": [
        (f(3, 4), 1, i(4, 3, 2)),
        (f(3, 4), 0, i(3, 2, 4)),
        (f(3, 3), 0, count(3, 3, 1)),
        (f(3, 3), 0, count(3, 1, 3)),
        (f(3, 3), -1, count(3, 1, 3)),
        (f(4, 3), 1, i(3, 2, 3)),
        (f(3, 3), 0, Stored(torch.arange(3).expand(3, 3))),
        (f(3, 3), 0, Stored(torch.arange(3)[:, None].expand(3, 3))),
        (f(3, 3), 1, Stored(torch.tensor([[2, 1, 0]]))),
        (f(3), 0, i(3, 3)),
    ],
    "index_add.default": [
        (f(3, 4), 0, i(3, 2), f(2, 4)),
        (f(3, 3), 1, i(3, 3), f(3, 3)),
        (f(3, 3), -1, count(3), f(3, 3)),
        (f(3), 0, count(3), f(3)),
    ],
    "index_copy.default": [
        (f(3, 4), 0, i(3, 2), f(2, 4)),
        (f(3, 3), -1, count(3), f(3, 3)),
    ],
    "index_fill.int_Scalar": [(f(3, 4), 0, i(3, 2), 1.0), (f(3, 3), 1, count(3), 1.0)],
    "index_fill.int_Tensor": [(f(3, 4), 0, i(3, 2), f()), (f(3, 3), 1, i(3, 3), f())],
    "masked_scatter.default": [(f(3, 3), b(3, 3), f(3, 3)), (f(3, 3), b(3), f(3, 3))],
    "nonzero.default": [(f(3, 4),)],
    "where.default": [(f(3, 4),)],
    "one_hot.default": [(torch.tensor([[0, 2], [1, 1], [2, 0]]), 3)],
    "nonzero_static.default": [],
    "masked_select.default": [(f(3, 4), b(3, 4)), (f(3, 4), b(4))],
    "unique_consecutive.default": [(i(3, 4, 2),)],
    "_unique2.default": [(i(3, 4, 2), True, True, True)],
    "unique_dim.default": [(i(3, 4, 2), 0)],
    "repeat_interleave.Tensor": [(i(3, 4),)],
    "repeat_interleave.self_Tensor": [(f(3, 4), i(3, 3), 0)],
    "_local_scalar_dense.default": [(f(1),), (f(),)],
    "item.default": [(f(1, 1),)],
}
"""By operator, without the namespace."""

INDICES: list[tuple[int, Any]] = [
    (0, count(3, 3, 1)),
    (1, count(3, 1, 3)),
    (0, Stored(torch.arange(3)[:, None].expand(3, 3))),
    (1, Stored(torch.arange(1, 3).expand(2, 2))),
    (0, i(3, 3, 3)),
    (-1, i(3, 2, 2)),
    (0, i(3, 1, 3)),
    (1, Stored(torch.tensor([[0, 0, 2]]))),
]
"""For `scatter` into [3, 3]."""

WRITES: list[Call] = [
    (f(3, 4), [i(3, 2)], f(2, 4)),
    (f(3, 4), [count(3)], f(3, 4)),
    (f(3, 4), [count(3)], f(4)),
    (f(3, 4), [count(3)], f(3, 1)),
    (f(3, 3), [count(3), i(3, 3)], f(3)),
    (f(3, 3), [count(3), count(3)], f(3)),
    (f(3, 3), [count(3, 3, 1), i(3, 3, 2)], f(3, 2)),
    (f(3, 3), [count(3, 3, 1), count(3)], f(3, 3)),
    (f(3, 3), [count(3), count(3, 3, 1)], f(3, 3)),
    (f(*S), [None, i(3, 3)], f(3, 3, 3)),
    (f(*S), [None, count(3), i(3, 3)], f(3, 3)),
    (f(*S), [i(3, 3), None, count(3)], f(3, 3)),
    (f(*S), [count(3), None, i(3, 3)], f(3, 3)),
    (f(3, 3), [None, FLIPPED], f(3, 3)),
    (f(3, 3), [k(0, 1)], f(2, 3)),
    (f(3, 3), [k(-1)], f(3)),
    (f(3, 3), [b(3, 3)], f()),
    (f(3, 3), [b(3)], f(1)),
    (f(3, 3), [b(3)], f(3)),
    (f(3, 3), [Stored(torch.tensor([True, True, True]))], f(3, 3)),
    (f(3, 3), [Stored(torch.tensor(0))], f(3)),
    (f(1, 3), [Stored(torch.arange(1)), i(3, 3)], f(3)),
]


def _scatters() -> list[Sample]:
    found = []
    for dim, index in INDICES:
        shape = index.tensor.shape if isinstance(index, Stored) else index.shape
        for source in (f(*shape), f(3, 3)):
            found += [
                Sample("aten.scatter.src", (f(3, 3), dim, index, source)),
                Sample("aten.scatter_add.default", (f(3, 3), dim, index, source)),
                Sample("aten.scatter.reduce", (f(3, 3), dim, index, source), {"reduce": "add"}),
                Sample(
                    "aten.scatter_reduce.two",
                    (f(3, 3), dim, index, source, "amax"),
                    {"include_self": False},
                ),
            ]
        found.append(Sample("aten.scatter.value", (f(3, 3), dim, index, 2.0)))
        product = {"reduce": "multiply"}
        found.append(Sample("aten.scatter.value_reduce", (f(3, 3), dim, index, 2.0), product))
    return found


def _aliased() -> list[Sample]:
    """One tensor as what is written to, what is written, and where."""
    x, n = f(3, 3), i(3, 3, 3)
    line, places = f(3), i(3, 3)
    return [
        *(
            Sample(f"aten.{name}", (x, dim, i(3, 3, 3), x))
            for dim in (0, 1)
            for name in ("scatter.src", "scatter_add.default")
        ),
        Sample("aten.scatter_reduce.two", (x, 0, i(3, 3, 3), x, "sum")),
        Sample("aten.scatter.src", (n, 0, n, n)),
        Sample("aten.scatter.src", (f(3, 3).long(), 0, n, n)),
        *(
            Sample(f"aten.{name}.default", (x, 0, i(3, 3), x))
            for name in ("index_add", "index_copy")
        ),
        Sample("aten.index_copy.default", (places, 0, places, places)),
        Sample("aten.index_put.default", (x, [i(3, 3)], x)),
        Sample("aten.index_put.default", (places, [places], places)),
        Sample("aten.index.Tensor", (places, [places])),
        Sample("aten.gather.default", (n, 0, n)),
        Sample("aten.index_fill.int_Tensor", (line, 0, places, f())),
        Sample("aten.masked_scatter.default", (x, b(3, 3), x)),
    ]


SAMPLES = [Sample(f"aten.{name}", args) for name, calls in CALLS.items() for args in calls]
SAMPLES += _scatters() + _aliased()
SAMPLES += [
    Sample(f"aten.{name}.default", (*args, accumulate))
    for name in ("index_put", "_unsafe_index_put")
    for args in WRITES
    for accumulate in (False, True)
    if name == "index_put" or not any(isinstance(one, Stored) for one in args[1])
]
SAMPLES.append(Sample("aten.nonzero_static.default", (f(3, 4),), {"size": 4}))
