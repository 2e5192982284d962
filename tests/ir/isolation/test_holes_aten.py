"""Ways around the analysis of ATen graphs that were found, or tried: each has to stay closed."""

import operator
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from planish.ir.flow.fx import read_exported, read_program
from planish.ir.flow.known import Numbers
from planish.ir.flow.polynomial import Polynomial, at_least
from support.fuzz import Spec, flows_seen
from support.random_graphs import Builder, aten, symbols
from support.random_programs import RandomProgram


class Small(Builder):
    """A builder of one graph over x [B, 4] and z [B, T]."""

    def __init__(self) -> None:
        super().__init__(random.Random(0), symbols(), True)
        self.x = self.input(Spec("x", np.float32, ("B", 4), 0))
        self.z = self.input(Spec("z", np.float32, ("B", "T"), 0))
        self.sizes = {
            "B": self.call(aten.sym_size.int, self.z, 0),
            "T": self.call(aten.sym_size.int, self.z, 1),
        }

    def program(self, node: fx.Node) -> RandomProgram:
        return RandomProgram(self, {node: self.texts(node).index("B")})


def strided_view(s: Small) -> fx.Node:
    """Memory of a transposed view, read as if it had been copied."""
    turned = s.call(aten.transpose.int, s.z, 0, 1)
    sizes = [s.sizes["T"], s.sizes["B"]]
    return s.call(aten.as_strided.default, turned, sizes, [s.sizes["B"], 1], 0)


def strided_result(s: Small) -> fx.Node:
    """The same of a result that keeps the order of its operand in memory."""
    turned = s.call(aten.relu.default, s.call(aten.transpose.int, s.z, 0, 1))
    sizes = [s.sizes["T"], s.sizes["B"]]
    return s.call(aten.as_strided.default, turned, sizes, [s.sizes["B"], 1], 0)


def renamed_strides(s: Small) -> fx.Node:
    """A view with strides of its own under the name of a reshape."""
    sizes = [s.sizes["B"], 4]
    return s.call(aten._reshape_alias.default, s.x, sizes, [0, 1])


def scatter_into_itself(s: Small) -> fx.Node:
    return s.call(aten.scatter.src, s.x, 0, s.stored(torch.zeros(2, 4, dtype=torch.int64)), s.x)


def add_to_itself(s: Small) -> fx.Node:
    order = s.call(aten.flip.default, _counting(s), [0])
    return s.call(aten.index_add.default, s.x, 0, order, s.x)


def copy_to_itself(s: Small) -> fx.Node:
    order = s.call(aten.flip.default, _counting(s), [0])
    return s.call(aten.index_copy.default, s.x, 0, order, s.x)


def _counting(s: Small) -> fx.Node:
    return s.call(aten.arange.default, s.sizes["B"], device=torch.device("cpu"))


def wrapped_index(s: Small) -> fx.Node:
    """x[arange - 1]: the first row is the last one."""
    before = s.call(aten.sub.Tensor, _counting(s), 1)
    return s.call(aten.index.Tensor, s.x, [before])


def wrapped_twice(s: Small) -> fx.Node:
    """Rows below zero, moved up by as many: of two copies, the wrong one."""
    twice = s.call(aten.repeat.default, s.x, [2, 1])
    low = s.call(aten.sub.Tensor, _counting(s), s.sizes["B"])
    flipped = s.call(aten.flip.default, twice, [0])
    return s.call(aten.index.Tensor, flipped, [low])


def rounded_index(s: Small) -> fx.Node:
    """arange // 2 * 2 is not arange."""
    half = s.call(aten.div.Tensor_mode, _counting(s), 2, rounding_mode="floor")
    return s.call(aten.index.Tensor, s.x, [s.call(aten.mul.Tensor, half, 2)])


def index_through_float(s: Small) -> fx.Node:
    """A cast that may round."""
    numbers = s.call(aten.to.dtype, _counting(s), torch.float16)
    scaled = s.call(aten.mul.Tensor, numbers, 0.5)
    back = s.call(aten.to.dtype, scaled, torch.int64)
    return s.call(aten.index.Tensor, s.x, [back])


def clamped_index(s: Small) -> fx.Node:
    return s.call(aten.index.Tensor, s.x, [s.call(aten.clamp.default, _counting(s), 0, 1)])


def modulo_index(s: Small) -> fx.Node:
    moved = s.call(aten.add.Tensor, _counting(s), 1)
    return s.call(aten.index.Tensor, s.x, [s.call(aten.remainder.Scalar, moved, s.sizes["B"])])


def added_to_twice(s: Small) -> fx.Node:
    """arange - arange is 0, whatever each of them is."""
    none = s.call(aten.sub.Tensor, _counting(s), _counting(s), alpha=1)
    return s.call(aten.index.Tensor, s.x, [none])


def turned_view(s: Small) -> fx.Node:
    """[B, T] viewed as [T, B]."""
    return s.call(aten.view.default, s.z, [s.sizes["T"], s.sizes["B"]])


def neighbours_in_the_fold(s: Small) -> fx.Node:
    """B * T by one place."""
    flat = s.call(aten.view.default, s.z, [s.product(["B", "T"])])
    moved = s.call(aten.constant_pad_nd.default, flat, [1, -1])
    return s.call(aten.view.default, moved, [s.sizes["B"], s.sizes["T"]])


def zero_gain(s: Small) -> fx.Node:
    """0 * x is not 0 where x is not a number."""
    nothing = s.call(aten.mul.Tensor, s.call(aten.flip.default, s.x, [0]), 0.0)
    return s.call(aten.add.Tensor, s.x, nothing)


def pushed_out(s: Small) -> fx.Node:
    """The first row on top, and the last one cut off."""
    return s.call(aten.constant_pad_nd.default, s.x, [0, 0, 1, -1])


def last_row(s: Small) -> fx.Node:
    last = s.call(aten.select.int, s.x, 0, s.call(operator.sub, s.sizes["B"], 1))
    return s.call(aten.add.Tensor, s.x, last)


HOLES = [
    strided_view, strided_result, renamed_strides, scatter_into_itself, add_to_itself,
    copy_to_itself, wrapped_index, wrapped_twice, rounded_index, index_through_float,
    clamped_index, modulo_index, added_to_twice, turned_view, neighbours_in_the_fold,
    zero_gain, pushed_out, last_row,
]  # fmt: skip


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.__name__)
def test_closed(hole: Callable[[Small], fx.Node]) -> None:
    small = Small()
    made = small.program(hole(small))
    assert "isolated" not in made.verdicts()
    assert flows_seen(made) != [""]


def test_memory_that_the_graph_made_in_order_is_followed() -> None:
    small = Small()
    mean = small.call(aten.mean.dim, small.call(aten.unsqueeze.default, small.x, -1), [-1], True)
    sizes = [small.sizes["B"], 4, 1]
    made = small.program(small.call(aten.as_strided.default, mean, sizes, [4, 1, 1]))
    assert made.verdicts() == ["isolated"]


def test_numbers_that_wrap_around_are_not_known() -> None:
    small = Small()
    index = small.stored(torch.tensor([0, 1], dtype=torch.int32))
    for _ in range(2):
        index = small.call(aten.mul.Tensor, index, 65536)
    wide = small.call(aten.to.dtype, index, torch.int64)
    index = small.call(aten.floor_divide.Scalar, wide, 1 << 32)
    rows = small.call(aten.index.Tensor, small.x, [index])
    row = small.call(aten.sum.dim_IntList, rows, [0])
    flow = read_program(small.program(small.call(aten.add.Tensor, small.x, row)).program)
    known = {value.name: one for value, one in flow.known.items() if isinstance(one, Numbers)}
    assert index.name not in known
    assert wide.name not in known


class Turning(torch.nn.Module):
    """Looks up by a buffer that counts in the first call, and in no later one."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(3))

    def forward(self, x: Tensor) -> Any:
        y = x[self.order]
        self.order.copy_(self.order.roll(1))
        return y


def test_buffers_that_are_written_are_not_known() -> None:
    exported = torch.export.export(Turning(), (torch.randn(3, 4),)).run_decompositions()
    assert "order" not in {value.name for value in read_exported(exported).known}


def test_signs_of_sizes() -> None:
    b, t, data = (Polynomial.symbol(name) for name in ("B", "T", "u0"))
    assert at_least(b - 1, 0)
    assert at_least(b * t - 1, 0)
    assert not at_least(b - 2, 0)
    assert not at_least(b - t, 0)
    assert not at_least(data, 0)
    assert not at_least(Polynomial.symbol("FloorDiv(B, 2)"), 1)
