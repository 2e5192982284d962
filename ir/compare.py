"""What passes did to a program, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx

from planish.ir.constants import evaluate_constant, weights
from planish.ir.cost import Layer, layer_of, layers
from planish.ir.program import Program

CHUNK = 1 << 20
"""Numbers that are compared at a time, so that float64 copies stay small."""


@dataclass(frozen=True)
class LayerDelta:
    """One layer before and after.

    Attributes:
        layer: the module's path; a layer that is gone has zeroes after, a new one before.
        parameters: numbers of the layer, however stored.
        nbytes: bytes it is stored in.
        form: how its largest tensor is stored; empty where the layer is not there.
        shapes: of its tensors that have the most dimensions; none where the layer is not there.
        error: ‖W' - W‖ / ‖W‖ in the Frobenius norm, where W is the layer's weight (its largest
            constant) and W' what stands in its place; None where nothing of the same shape does,
            and where W is zero and W' is not.
            A pass that promises the same function may still change a weight a lot: folding a
            batch norm scales it.
    """

    layer: str
    parameters: tuple[int, int]
    nbytes: tuple[int, int]
    form: tuple[str, str]
    shapes: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    error: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare(before: Program, after: Program) -> tuple[LayerDelta, ...]:
    """Compare two programs with data, layer by layer, in the order of the first.

    A weight is what a layer consumes: `planish::dequantize` and other operators on tensors alone
    are evaluated, one weight at a time, so that memory grows by the largest weight only.

    Args:
        before: as captured.
        after: made from it by passes; tensors are matched by name, `W_packed` with `W`.
    """
    old = {layer.name: layer for layer in layers(before)}
    new = {layer.name: layer for layer in layers(after)}
    errors = _errors(before, after)
    return tuple(
        _delta(name, old.get(name), new.get(name), errors.get(name)) for name in {**old, **new}
    )


def _delta(name: str, old: Layer | None, new: Layer | None, error: float | None) -> LayerDelta:
    absent = Layer(name, 0, 0, "")
    one, other = old or absent, new or absent
    return LayerDelta(
        name,
        (one.parameters, other.parameters),
        (one.nbytes, other.nbytes),
        (one.form, other.form),
        (one.shapes, other.shapes),
        error,
    )


def _errors(before: Program, after: Program) -> dict[str, float | None]:
    """The relative error of each layer's weight, where both programs have one of one shape."""
    became = successors(before, after)
    largest: dict[str, tuple[str, fx.Node]] = {}
    for node, (name, *_) in weights(before.graph):
        if node.meta["val"].is_floating_point():
            known = largest.setdefault(layer_of(name), (name, node))
            if node.meta["val"].numel() > known[1].meta["val"].numel():
                largest[layer_of(name)] = (name, node)
    return {
        layer: _relative_error(evaluate_constant(after, new), evaluate_constant(before, node))
        for layer, (name, node) in largest.items()
        if (new := became.get(name)) is not None and new.meta["val"].shape == node.meta["val"].shape
    }


def successors(before: Program, after: Program) -> dict[str, fx.Node]:
    """What each weight became, by its name in `before`.

    Left out is what is gone, and what became several, such as codes and a product.
    """
    found: dict[str, dict[str, fx.Node]] = {}
    for node, names in weights(after.graph):
        if (name := _original(names[0], before.tensors)) is not None:
            found.setdefault(name, {})[names[0]] = node
    return {
        name: node for name, nodes in found.items() if len(nodes) == 1 for node in nodes.values()
    }


def _original(name: str, known: Container[str]) -> str | None:
    """The tensor that `name` was made from: `W` for `W_packed` and `W_zero_point`."""
    while name not in known:
        name, found, _ = name.rpartition("_")
        if not found:
            return None
    return name


def _relative_error(got: Tensor, expected: Tensor) -> float | None:
    """‖got - expected‖ / ‖expected‖, summed in float64 a chunk at a time."""
    if got is expected:
        return 0.0
    difference = norm = 0.0
    chunks = (tensor.reshape(-1).split(CHUNK) for tensor in (got, expected))
    for one, other in zip(*chunks, strict=True):
        wide = other.double()
        norm += float(wide.square().sum())
        difference += float((one.double() - wide).square().sum())
    if difference == 0.0:
        return 0.0
    return math.sqrt(difference / norm) if norm else None
