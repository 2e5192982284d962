"""Bases of residual streams: which directions carry most, and how many of them to keep.

Source: Ashkboos et al., "SliceGPT: Compress Large Language Models by Deleting Rows and Columns"
(2024, section 3.4): the principal components of what the norms along a stream give.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from planish.ir.axes.axes import Axes, Axis
from planish.ir.axes.fold import NORMS, PASSES
from planish.ir.program import Program, Sample
from planish.passes.sequential import Run, second_moments
from planish.passes.streams import SKIP, aten, lies_along
from planish.passes.work import UNSEEN


def readings(program: Program, axes: Axes, axis: Axis) -> list[fx.Node]:
    """What layers read of a stream: what norms along it give, and where it is read raw, itself."""
    found: dict[fx.Node, None] = {}
    for node in program.graph.nodes:
        if node.target in NORMS and lies_along(axes, axis, node):
            found[node] = None
        elif node.target is aten.linear.default and not is_passage(node):
            source = moved_from(node.args[0])
            if lies_along(axes, axis, source) and source.target not in NORMS:
                found[source] = None
    return list(found)


def is_passage(node: fx.Node) -> bool:
    """Whether a node multiplies by a matrix on a skip connection."""
    matrix = node.args[1] if node.target is aten.linear.default else None
    return isinstance(matrix, fx.Node) and str(matrix.target).endswith(f".{SKIP}.weight")


def moved_from(node: fx.Node) -> fx.Node:
    """What a value was before its elements were moved."""
    while node.target in PASSES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def moments(
    program: Program,
    samples: Sequence[Sample],
    values: Mapping[Axis, Sequence[fx.Node]],
    tell: Callable[[int, int], None] = UNSEEN.tell,
) -> tuple[dict[Axis, Tensor], int]:
    """Second moments of what is read along axes, float64 [n, n], and of how many rows at least.

    Each reading counts alike, whatever its size. Rows of one sample are multiplied in the dtype
    that they have, and the products added up in float64.

    Args:
        program: to run over the samples, once.
        samples: at least one.
        values: nodes along each axis.
        tell: called with how many values are done, and of how many.
    """
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    wanted = sorted(
        ((node, axis) for axis, nodes in values.items() for node in nodes),
        key=lambda pair: place[pair[0]],
    )
    run = Run(program, samples)
    found: dict[Axis, Tensor] = {}
    fewest: list[int] = []
    for done, (node, axis) in enumerate(wanted, start=1):
        run.until(node.next)
        total, rows = gram(run.read(node))
        total /= total.trace().clamp_min(torch.finfo().tiny)
        found[axis] = found[axis] + total if axis in found else total
        fewest.append(rows)
        tell(done, len(wanted))
    return found, min(fewest, default=0)


def gram(values: Iterable[Tensor]) -> tuple[Tensor, int]:
    """Σ x xᵀ, float64 [K, K], over values [..., K], and of how many x."""
    total: Tensor | None = None
    count = 0
    for value in values:
        part, rows = second_moments([value])
        total = part.double() if total is None else total.add_(part)
        count += rows
    if total is None:
        raise ValueError("there are no values")
    return total, count


def components(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Principal components as rows, those that carry most first, and what each carries.

    Signs are such that the largest entry of each is positive, so that machines agree.

    Args:
        moments: float64 [n, n], symmetric.
    """
    carried, vectors = torch.linalg.eigh(moments)
    rows = vectors.T.flip(0)
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    return (rows * signs).contiguous(), carried.flip(0).clamp_min(0)


def evenly(sizes: Sequence[int], ratio: float, multiple: int) -> list[int]:
    """How many directions to keep of each axis: all but a share, to the nearest multiple."""
    return [max(multiple, round(size * (1 - ratio) / multiple) * multiple) for size in sizes]


def by_energy(carried: Sequence[Tensor], ratio: float, multiple: int) -> list[int]:
    """How many directions to keep of each axis, as many in all as `evenly`, where they carry most.

    One multiple at a time is given to the axis whose next directions carry the largest share. None
    keeps less than half of what `evenly` would give it.

    Args:
        carried: by each direction of each axis, descending.
        ratio: the share to remove of all.
        multiple: of which each width is one.
    """
    even = evenly([len(one) for one in carried], ratio, multiple)
    widths = [max(multiple, width // 2 // multiple * multiple) for width in even]
    shares = [one / one.sum().clamp_min(torch.finfo().tiny) for one in carried]
    waiting: list[tuple[float, int]] = []

    def offer(number: int) -> None:
        width = widths[number]
        if width + multiple <= len(shares[number]):
            gain = float(shares[number][width : width + multiple].sum())
            heapq.heappush(waiting, (-gain, number))

    for number in range(len(widths)):
        offer(number)
    left = (sum(even) - sum(widths)) // multiple
    while left and waiting:
        _, number = heapq.heappop(waiting)
        widths[number] += multiple
        left -= 1
        offer(number)
    return widths
