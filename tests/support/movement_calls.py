"""Calls of the operators that move elements, with the arguments on which a rule may go wrong."""

from __future__ import annotations

from typing import Any

import torch

from support.refute import Sample
from support.tensors import f

A, S = (3, 4, 2), (3, 3, 3)
"""A shape of different sizes, and one where dimensions cannot be told apart by size."""

_LAST_BIG = 2**63 - 1

CALLS: dict[str, list[tuple[Any, ...]]] = {
    "view.default": [(f(3, 4, 2), [12, 2]), (f(3, 4, 2), [4, 6]), (f(6, 4), [2, 3, 2, 2])],
    "_unsafe_view.default": [(f(3, 4, 2), [3, 8]), (f(4, 3), [3, 4])],
    "reshape.default": [(f(3, 4, 2), [-1, 8]), (f(4, 6), [2, 2, 6]), (f(4, 6), [6, 4])],
    "_reshape_copy.default": [(f(3, 4, 2), [12, 2]), (f(4, 6), [8, 3])],
    "view_copy.default": [(f(3, 4, 2), [3, 2, 4]), (f(2, 2), [4])],
    "flatten.using_ints": [(f(*A), 0, 1), (f(*A), 1, -1), (f(*A),)],
    "unflatten.int": [(f(6, 4), 0, [2, 3]), (f(6, 4), -1, [2, -1])],
    "squeeze.default": [(f(3, 1, 2, 1),), (f(1, 1),)],
    "squeeze.dim": [(f(3, 1, 2), 1), (f(3, 1, 2), 0), (f(3, 1, 2), -2)],
    "squeeze.dims": [(f(1, 3, 1, 2), [0, 2]), (f(1, 3, 1), [-1, 1])],
    "squeeze_copy.dim": [(f(3, 1, 2), 1)],
    "squeeze_copy.dims": [(f(1, 3, 1, 2), [0, 2])],
    "unsqueeze.default": [(f(3, 2), 0), (f(3, 2), -1), (f(3, 2), -2)],
    "unsqueeze_copy.default": [(f(3, 2), 1)],
    "view_as.default": [(f(3, 4), f(2, 6)), (f(4, 3), f(4, 3, 1))],
    "ravel.default": [(f(*A),), (f(3, 3),)],
    "expand.default": [(f(3, 1, 2), [3, 4, 2]), (f(3, 1), [2, -1, 3]), (f(3), [3, 3])],
    "expand_as.default": [(f(3, 1), f(3, 3)), (f(3), f(3, 3))],
    "broadcast_to.default": [(f(3, 1), [2, 3, 4]), (f(3), [3, 3])],
    "expand_copy.default": [(f(3, 1), [2, 3, 3])],
    "permute.default": [(f(*A), [2, 0, 1]), (f(*S), [1, 2, 0]), (f(*S), [-1, 0, -2])],
    "permute_copy.default": [(f(*S), [2, 0, 1])],
    "transpose.int": [(f(*A), 0, -1), (f(*S), -1, 0), (f(*S), 1, 1), (f(3), 0, -1)],
    "transpose_copy.int": [(f(*S), 0, 1)],
    "swapaxes.default": [(f(*S), 0, -1)],
    "swapdims.default": [(f(*S), 0, 1)],
    "t.default": [(f(3, 4),), (f(3, 3),), (f(3),)],
    "t_copy.default": [(f(3, 3),)],
    "mT.default": [(f(*A),), (f(*S),)],
    "numpy_T.default": [(f(*A),), (f(*S),), (f(3, 3),)],
    "adjoint.default": [(f(*A),), (f(*S),)],
    "movedim.int": [(f(*S), 0, 2), (f(*A), -1, 0)],
    "movedim.intlist": [(f(*S), [0, 1], [1, 2]), (f(*A), [2, 0], [0, -1])],
    "moveaxis.int": [(f(*S), 0, -1)],
    "moveaxis.intlist": [(f(*S), [0, 2], [2, 1])],
    "slice.Tensor": [
        (f(*A),),
        (f(4, 3), 0, 1, 3),
        (f(4, 3), -2, -3, -1),
        (f(4, 3), 0, -2, _LAST_BIG),
        (f(4, 3), 0, -9, 2),
        (f(4, 3), 0, 1, _LAST_BIG, 2),
        (f(4, 3), 0, 2, 99),
        (f(4, 3), 0, None, -1),
        (f(6, 2), 0, 2, 6, 3),
        (f(4, 3), 0, 7, 9),
        (f(4, 3), 0, 3, 1),
    ],
    "slice_copy.Tensor": [(f(4, 3), 0, 1, 3), (f(4, 3), 0, -3, _LAST_BIG, 2)],
    "select.int": [(f(*A), 0, 1), (f(*A), -2, -1), (f(*S), 1, -3)],
    "select_copy.int": [(f(*S), 0, -1)],
    "narrow.default": [(f(4, 3), 0, 1, 2), (f(4, 3), -2, -2, 2)],
    "narrow_copy.default": [(f(4, 3), 0, 1, 2), (f(4, 3), 0, -3, 2)],
    "split.Tensor": [(f(5, 3), 2), (f(3, 4), 2, -1)],
    "split.sizes": [(f(5, 3), [1, 3, 1]), (f(3, 4), [1, 3], -1)],
    "split_with_sizes.default": [(f(5, 3), [2, 3]), (f(4, 4), [1, 3], 1)],
    "split_copy.Tensor": [(f(5, 3), 2)],
    "split_with_sizes_copy.default": [(f(5, 3), [2, 3])],
    "chunk.default": [(f(5, 3), 3), (f(3, 4), 2, -1), (f(4, 3), 8)],
    "tensor_split.sections": [(f(5, 3), 3), (f(3, 4), 3, -1)],
    "unbind.int": [(f(3, 4),), (f(3, 3), -1)],
    "unbind_copy.int": [(f(3, 3), 1)],
    "cat.default": [
        ([f(3, 2), f(3, 2)],),
        ([f(3, 2), f(3, 2)], -1),
        ([f(2, 2), f(1, 2), f(3, 2)], 0),
        ([f(0), f(3, 2)], 0),
        ([f(4, 4), f(2, 4), f(4, 4)], 0),
        ([f(1), f(1), f(1)],),
    ],
    "concat.default": [([f(3, 3), f(3, 3)], 1)],
    "concatenate.default": [([f(3, 3), f(3, 3)], 0)],
    "stack.default": [([f(3, 2), f(3, 2)], 0), ([f(3, 2), f(3, 2)], -1), ([f(3), f(3), f(3)],)],
    "flip.default": [(f(*A), [0]), (f(*A), [-1, 0]), (f(4, 4), [1]), (f(3), [])],
    "roll.default": [(f(3, 3), [1]), (f(3, 4), [1], [0]), (f(3, 4), [1, -1], [0, -1])],
    "repeat.default": [(f(3, 2), [2, 1]), (f(3, 2), [2, 3, 1]), (f(4), [2]), (f(2, 4), [1, 2])],
    "tile.default": [(f(3, 2), [2]), (f(3, 2), [2, 1, 3]), (f(2), [2, 2])],
    "repeat_interleave.self_int": [(f(3, 2), 2, 0), (f(3, 2), 2, -1), (f(2, 3), 3)],
    "diagonal.default": [
        (f(3, 3),),
        (f(3, 4), 1),
        (f(3, 4), -1),
        (f(*S), 0, 0, -1),
        (f(*S), -1, 2, 0),
        (f(4, 4, 4), 2, 1, 2),
    ],
    "diagonal_copy.default": [(f(3, 3), -1), (f(*S), 1, -1, -3)],
    **{
        f"{name}.dtype": [(f(3, 4), dtype) for dtype in (torch.int32, torch.int16, torch.float64)]
        for name in ("view", "view_copy")
    },
    "as_strided.default": [
        (f(3, 4), [12], [1]),
        (f(3, 4), [4, 3], [1, 4]),
        (f(4, 4), [2, 4], [4, 1], 8),
        (f(3, 4), [3, 1, 4], [4, 7, 1]),
        (f(3, 3), [3, 3], [0, 1]),
        (f(4, 3), [3, 4], [4, 1]),
    ],
    "as_strided_copy.default": [(f(3, 4), [6, 2], [2, 1]), (f(3, 3), [3, 3], [1, 3])],
    "constant_pad_nd.default": [
        (f(3, 4), [1, 2]),
        (f(3, 4), [0, 0, 1, 2], 1.0),
        (f(3, 4), [-1, 1, -1, 0]),
        (f(4, 4), [0, 0, 2, -1]),
        (f(3, 3, 3), [0, -1, 1, 0, -1, -1]),
    ],
    "pad.default": [
        (f(3, 4), [1, 0, 0, 1]),
        (f(3, 4, 5), [1, 2], "reflect"),
        (f(3, 4, 5), [1, 2], "replicate"),
        (f(3, 3, 3), [1, 1], "circular"),
        (f(3, 4), [-1, 1], "constant", 2.0),
    ],
    "reflection_pad1d.default": [(f(3, 2, 4), [1, 2]), (f(3, 4), [2, 0])],
    "replication_pad1d.default": [(f(3, 2, 4), [1, 2]), (f(3, 4), [2, -1])],
    "reflection_pad2d.default": [(f(2, 3, 3, 3), [1, 0, 2, 1])],
    "replication_pad2d.default": [(f(3, 3, 3), [1, 0, 2, 1])],
    "reflection_pad3d.default": [(f(2, 2, 3, 3, 3), [1, 0, 2, 1, 0, 1])],
    "replication_pad3d.default": [(f(2, 3, 3, 3), [1, 0, 2, 1, 0, 1])],
    "slice_scatter.default": [
        (f(4, 3), f(2, 3), 0, 1, 3),
        (f(4, 3), f(4, 3)),
        (f(4, 3), f(2, 3), 0, -2, _LAST_BIG),
        (f(4, 3), f(2, 3), 0, -9, 2),
        (f(4, 3), f(4, 2), -1, 1, 99),
        (f(4, 3), f(2, 3), 0, 0, 4, 2),
        (f(4, 3), f(0, 3), 0, 9, 12),
    ],
    "select_scatter.default": [(f(4, 3), f(3), 0, 1), (f(3, 3), f(3), -1, -1)],
    "unfold.default": [
        (f(4, 3), 0, 2, 2),
        (f(4, 3), 0, 3, 1),
        (f(5, 3), 0, 2, 2),
        (f(3, 6), -1, 3, 3),
    ],
    "unfold_copy.default": [(f(4, 3), 0, 2, 2), (f(4, 4), 1, 2, 1)],
    "pixel_shuffle.default": [(f(2, 8, 2, 3), 2), (f(4, 3, 3), 2)],
    "pixel_unshuffle.default": [(f(2, 2, 4, 6), 2), (f(3, 4, 4), 2)],
    "broadcast_tensors.default": [([f(3, 1), f(3)],), ([f(3), f(2, 1)],)],
    "meshgrid.default": [([f(3), f(3)],), ([f(2), f(3), f(4)],)],
}
"""By operator, without the namespace."""


def _aliased() -> list[Sample]:
    """One tensor given twice, and stored ones."""
    x = f(3, 3)
    return [
        Sample("aten.cat.default", ([x, x], 0)),
        Sample("aten.stack.default", ([x, x], 1)),
        Sample("aten.slice_scatter.default", (x, x)),
        Sample("aten.select_scatter.default", (f(3), f(), 0, 1)),
        Sample("aten.view_as.default", (x, x)),
        Sample("aten.meshgrid.indexing", ([x[0], x[1]],), {"indexing": "xy"}),
        Sample("aten.meshgrid.indexing", ([f(2), f(3), f(4)],), {"indexing": "xy"}),
        Sample("aten.meshgrid.indexing", ([f(2), f(3)],), {"indexing": "ij"}),
    ]


SAMPLES = [Sample(f"aten.{name}", args) for name, calls in CALLS.items() for args in calls]
SAMPLES += _aliased()
