"""Least squares for what a cut took away, in closed form: weights along a sliced stream, refitted.

The unchanged model and the cut one are run side by side over samples, up to one place after the
other. What is written at a place is moved towards what the unchanged model has there, in the
coordinates that were kept; what is read there, towards the coordinates that were not. Each place
sees what the refitted ones before it give. The idea of exact inputs beside actual ones is that of
`planish.passes.compensation.drift`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.axes.axes import Axes, Axis
from planish.ir.axes.fold import NORMS, PASSES
from planish.ir.program import Change, Program, Sample
from planish.passes.bases import gram, is_passage, readings
from planish.passes.layers import Layer, layers_of
from planish.passes.sequential import Run
from planish.passes.streams import aten, lies_along
from planish.passes.work import Work

ROWS = 2
"""How many rows there have to be for each input of the layers at a place: fewer are overfitted."""

_PRODUCTS = (aten.linear.default, aten.matmul.default, aten.bmm.default)

_SAME_ROWS = {
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.clone.default,
    aten._to_copy.default,
}
"""Operators that keep a value's rows, and their order."""


@dataclass(frozen=True)
class Reading:
    """A value along a stream, and the layers that read it.

    Attributes:
        value: the node, of the uncut program.
        readers: names of the nodes that multiply by the layers' weights.
    """

    value: fx.Node
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Writing:
    """A sum onto a stream, and the layers that give what is summed.

    Attributes:
        value: the sum, of the uncut program.
        writers: names of linear layers, in the order of the graph.
        normed: whether the stream is read through norms, so that rows count by their share.
    """

    value: fx.Node
    writers: tuple[str, ...]
    normed: bool


def places(
    program: Program, axes: Axes, axes_cut: Sequence[Axis], skips: Mapping[str, int]
) -> list[Reading | Writing]:
    """Where something can be refitted, in the order of the graph.

    Args:
        program: uncut.
        axes: of it.
        axes_cut: those that lose directions.
        skips: names of sums onto streams, and which of the summands is the stream.
    """
    found: list[Reading | Writing] = []
    order = {node: number for number, node in enumerate(program.graph.nodes)}
    for axis in axes_cut:
        values = readings(program, axes, axis)
        normed = any(value.target in NORMS for value in values)
        readers = {value: tuple(_readers(axes, axis, value)) for value in values}
        found += [
            Reading(value, tuple(one.name for one in several))
            for value, several in readers.items()
            if several
        ]
        for node in program.nodes(aten.add.Tensor):
            if node.name in skips and lies_along(axes, axis, node):
                writers = sorted(
                    _writers(axes, axis, node, skips[node.name]), key=order.__getitem__
                )
                found.append(Writing(node, tuple(one.name for one in writers), normed))
    return sorted(found, key=lambda one: (order[one.value], isinstance(one, Reading)))


def _readers(axes: Axes, axis: Axis, value: fx.Node) -> Iterator[fx.Node]:
    """What multiplies a value by a weight, once its elements were moved."""
    for user in value.users:
        if user.target in _PRODUCTS and user.args[0] is value and not is_passage(user):
            yield user
        elif user.target in PASSES and lies_along(axes, axis, user):
            yield from _readers(axes, axis, user)


def _writers(axes: Axes, axis: Axis, node: fx.Node, skip: int) -> Iterator[fx.Node]:
    """The linear layers whose results are summed, row by row: also the passage on the skip."""
    summands: Any = node.args[:2]
    if is_passage(summands[skip]):
        yield summands[skip]
    yield from _behind(axes, axis, summands[1 - skip])


def _behind(axes: Axes, axis: Axis, node: fx.Node) -> Iterator[fx.Node]:
    if len(node.users) > 1 or not lies_along(axes, axis, node):
        return
    if node.target is aten.linear.default:
        yield node
    elif node.target is aten.add.Tensor:
        for summand in node.args[:2]:
            if isinstance(summand, fx.Node):
                yield from _behind(axes, axis, summand)
    elif node.target in _SAME_ROWS:
        source: Any = node.args[0]
        yield from _behind(axes, axis, source)


def refitted(
    full: Program,
    small: Program,
    where: Sequence[Reading | Writing],
    samples: Sequence[Sample],
    dampening: float,
    reads: float,
    work: Work,
) -> Program:
    """A cut program whose weights were moved, one place after the other, towards the uncut one.

    Args:
        full: the program in the coordinates of the cut one, the ones kept first along each axis.
        small: with those alone.
        where: as `places` gives them, of `full`.
        samples: at least one.
        dampening: what is added to the diagonals of second moments, as a share of their mean.
        reads: how far what reads the stream is moved, from 0 to 1.
        work: told of each place, and keeps what was found there.
    """
    fit = _Fit(full, small, samples, dampening, reads)
    if not reads:
        where = [place for place in where if isinstance(place, Writing)]
    for done, place in enumerate(where, start=1):
        piece = f"{type(place).__name__}-{place.value.name}".lower()
        kept = work.journal.load(piece) if work.journal else None
        known = kept["step"] if kept else None
        step = fit.read(place, known) if isinstance(place, Reading) else fit.write(place, known)
        if known is None and work.journal is not None:
            work.journal.keep(piece, {"step": step})
        work.tell(done, len(where))
    changes = [
        Change(name, "not repaired: there are too few calibration tokens for its layers' inputs")
        for name in fit.left
    ]
    tensors = {**small.tensors, **fit.found}
    return dataclasses.replace(small, tensors=tensors, changes=(*small.changes, *changes))


class _Fit:
    """Both programs while they are run, and the tensors found so far."""

    def __init__(
        self,
        full: Program,
        small: Program,
        samples: Sequence[Sample],
        dampening: float,
        reads: float,
    ) -> None:
        self.found: dict[str, Tensor] = {}
        self.left: list[str] = []
        self._full, self._small = full, small
        self._exact, self._now = Run(full, samples), Run(small, samples)
        self._nodes = {node.name: node for node in small.graph.nodes}
        self._layers = _single(small)
        self._before = _single(full)
        self._dampening, self._reads = dampening, reads

    def read(self, place: Reading, step: Tensor | None) -> Tensor:
        """Let layers read x where there is z, so that z (I + step) is nearest to x: [n', n]."""
        value = self._nodes[place.value.name]
        self._exact.until(place.value.next)
        self._now.until(value.next)
        inputs = self._now.read(value)
        wanted = self._exact.read(place.value)
        width, whole = inputs[0].shape[-1], wanted[0].shape[-1]
        if step is None:
            missing = [
                x.flatten(0, -2) - torch.nn.functional.pad(z.flatten(0, -2), (0, whole - width))
                for x, z in zip(wanted, inputs, strict=True)
            ]
            step = _step([z.flatten(0, -2) for z in inputs], missing, [width], self._dampening)
        whole_step = torch.eye(width, whole, dtype=torch.float64) + self._reads * step
        for name in place.readers:
            layer, before = self._layers.get(name), self._before.get(name)
            if layer is None or before is None:
                continue
            matrix = before.matrix(self._full.tensors)
            if matrix.shape[:-1] == layer.matrix(self._small.tensors).shape[:-1]:
                self._set(layer, (matrix.double() @ whole_step.T).to(matrix.dtype))
        return step

    def write(self, place: Writing, step: Tensor | None) -> Tensor:
        """Let what is summed, y, be such that the sum plus y step is nearest to the exact one."""
        layers = [self._layers[name] for name in place.writers if name in self._layers]
        value = self._nodes[place.value.name]
        given: list[list[Tensor]] = []
        for layer in layers:
            node = layer.first_reader
            self._now.until(node)
            source: Any = node.args[0]
            given.append([one.flatten(0, -2) for one in self._now.read(source)])
        self._exact.until(place.value.next)
        self._now.until(value.next)
        if not layers:
            return torch.zeros(0)
        bias = next((one for one in map(self._bias, layers) if one is not None), None)
        if bias is not None:
            given.append([torch.ones_like(one[:, :1]) for one in given[0]])
        rows = [torch.cat(parts, -1) for parts in zip(*given, strict=True)]
        sums, exact = self._now.read(value), self._exact.read(place.value)
        widths = [one[0].shape[-1] for one in given]
        if step is None and sum(map(len, rows)) < ROWS * sum(widths):
            self.left.append(place.value.name)
            step = torch.zeros(sum(widths), sums[0].shape[-1], dtype=torch.float64)
        if step is None:
            width = sums[0].shape[-1]
            missing = [
                (x[..., :width] - s).flatten(0, -2) for x, s in zip(exact, sums, strict=True)
            ]
            weights = [_weights(x.flatten(0, -2)) if place.normed else None for x in exact]
            step = _step(rows, missing, widths, self._dampening, weights)
        self._now.put(
            value,
            [s + (f @ step.to(f.dtype)).view(s.shape) for s, f in zip(sums, rows, strict=True)],
        )
        parts = step.split(widths)
        for layer, part in zip(layers, parts, strict=False):
            matrix = layer.matrix(self._small.tensors)
            self._set(layer, (matrix.double() + part.T).to(matrix.dtype))
        if bias is not None:
            old = self._small.tensors[bias]
            self.found[bias] = (old.double() + parts[-1][0]).to(old.dtype)
        return step

    def _bias(self, layer: Layer) -> str | None:
        """The bias that is the layer's alone."""
        arguments: Any = layer.first_reader.args
        bias = arguments[2] if len(arguments) > 2 else None
        if bias is None or bias.op != "get_attr" or len(bias.users) > 1:
            return None
        return str(bias.target)

    def _set(self, layer: Layer, matrix: Tensor) -> None:
        """A new matrix [N, K], to be read from now on, and stored as the layer's was."""
        read = layer.as_read(matrix)
        self._now.weights[layer.node] = read
        self.found[layer.name] = layer.stored(read)


def _single(program: Program) -> dict[str, Layer]:
    """Layers that one node reads, by its name."""
    return {
        layer.first_reader.name: layer
        for layer in layers_of(program.graph, program)
        if len(layer.node.users) == 1
    }


def _weights(exact: Tensor) -> Tensor:
    """Of each row [R, n] how much it counts: by what share of it an error is, [R, 1]."""
    return exact.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def _step(
    rows: Sequence[Tensor],
    missing: Sequence[Tensor],
    widths: Sequence[int],
    dampening: float,
    weights: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """B with the least Σ |w (f B - r)|² over rows f and what they miss r: float64 [K, N].

    Args:
        rows: [R, K] for each sample.
        missing: [R, N] for each sample.
        widths: of the parts of K, each of which is dampened by its own size.
        dampening: as a share of the mean of a part's second moments.
        weights: [R, 1] for each sample.
    """
    width = rows[0].shape[-1]
    moments = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, missing[0].shape[-1], dtype=torch.float64)
    for number, (f, r) in enumerate(zip(rows, missing, strict=True)):
        weight = weights[number] if weights else None
        one, other = (f, r) if weight is None else (f * weight, r * weight)
        moments += gram([one])[0]
        cross += (one.T @ other).double()
    parts = moments.diagonal().split([*widths])
    added = torch.cat([part.mean().clamp_min(1e-30).expand(len(part)) for part in parts])
    step: Tensor = torch.linalg.solve(moments + torch.diag(added * dampening), cross)
    return step.contiguous()  # as it comes back from a journal, to the last bit of what follows
