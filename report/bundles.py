"""Axes that became shorter, and what they run through; those that are alike told together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planish.report.blocks import locate

Json = Mapping[str, Any]
Span = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """One dimension that an axis runs through, or that of as many tensors, one a block.

    Attributes:
        name: the tensor without its block, and the dimension: `mlp.up_proj.weight[0]`.
        number: of tensors.
        before: its extent.
        after: the least and the most now; None where all of the tensors are gone.
    """

    name: str
    number: int
    before: int
    after: Span | None


@dataclass(frozen=True)
class Bundle:
    """An axis, or as many that are alike, one a block.

    Attributes:
        kind: `"channels"`, `"heads"`, `"experts"` or `"stream"`.
        number: of axes.
        size: how many indices each had.
        left: the least and the most that one has now.
        rows: what it runs through.
    """

    kind: str
    number: int
    size: int
    left: Span
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        many = f", {self.number} axes alike" if self.number > 1 else ""
        return f"{self.kind}: {self.size} → {span(self.left)}{many}"


def span(ends: Span) -> str:
    """One number, or from the first to the last."""
    first, last = ends
    return str(first) if first == last else f"{first}\N{EN DASH}{last}"


def bundles(groups: Sequence[Json], layers: Sequence[str]) -> list[Bundle]:
    """Axes that became shorter, those together that are alike but for their block.

    Args:
        groups: `planish.passes.coupled.Coupled` as JSON.
        layers: the names of all layers, which tell what a block is.
    """
    places = zip(layers, locate(layers), strict=True)
    kinds = {layer: place.kind for layer, place in places}
    found: dict[tuple[Any, ...], Bundle] = {}
    for group in groups:
        one = Bundle(group["kind"], 1, group["size"], tuple(group["left"]), _members(group, kinds))
        alike = (one.kind, one.size, *((row.name, row.before) for row in one.rows))
        found[alike] = _both(found[alike], one) if alike in found else one
    return list(found.values())


def _members(group: Json, kinds: Mapping[str, str]) -> tuple[Row, ...]:
    """What an axis runs through, one row for all blocks."""
    rows: dict[tuple[str, int], Row] = {}
    for member in group["members"]:
        dim, (before, after) = member["dim"], member["shapes"]
        layer, _, last = member["tensor"].rpartition(".")
        name = f"{kinds.get(layer, layer)}.{last}[{dim}]".removeprefix(".")
        now = (after[dim], after[dim]) if after else None
        row = Row(name, 1, before[dim], now)
        key = (name, row.before)
        rows[key] = _joined(rows[key], row) if key in rows else row
    return tuple(rows.values())


def _both(one: Bundle, other: Bundle) -> Bundle:
    rows = zip(one.rows, other.rows, strict=True)
    return replace(
        one,
        number=one.number + other.number,
        left=_widest(one.left, other.left),
        rows=tuple(_joined(row, more) for row, more in rows),
    )


def _joined(row: Row, more: Row) -> Row:
    spans = [now for now in (row.after, more.after) if now is not None]
    after = _widest(*spans) if spans else None
    return replace(row, number=row.number + more.number, after=after)


def _widest(*spans: Span) -> Span:
    return min(low for low, _ in spans), max(high for _, high in spans)
