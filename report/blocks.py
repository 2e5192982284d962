"""The order in a list of layers: which of them recur in every block of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_BLOCKS = 4
"""Fewer repetitions than this are shown as the layers they are."""


@dataclass(frozen=True)
class Place:
    """Where a layer stands.

    Attributes:
        kind: its name without the block, e.g. `"mlp.up_proj"`.
        block: the number of its block; None for a layer outside of them.
    """

    kind: str
    block: int | None


@dataclass(frozen=True)
class Kind:
    """The layers of one kind, one a block, or a single layer that does not recur."""

    name: str
    layers: tuple[Mapping[str, Any], ...]
    blocks: tuple[int | None, ...]

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of all of them, before and after."""
        before, after = zip(*(layer["nbytes"] for layer in self.layers), strict=True)
        return sum(before), sum(after)


def kinds_of(layers: Iterable[Mapping[str, Any]]) -> tuple[Kind, ...]:
    """Layers by kind, in the order of their first appearance.

    Args:
        layers: deltas of `planish.ir.compare` as JSON.
    """
    known = list(layers)
    places = locate([layer["layer"] for layer in known])
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, place in enumerate(places):
        groups.setdefault((place.kind, place.block is None), []).append(index)
    return tuple(
        Kind(
            name,
            tuple(known[index] for index in members),
            tuple(places[index].block for index in members),
        )
        for (name, _), members in groups.items()
    )


def locate(names: Sequence[str]) -> list[Place]:
    """Find the list of blocks that most layers are in, such as `model.layers`, and split names.

    What all other layers have in front in common with the blocks (`model.`) is left out.
    """
    splits = [_split(name) for name in names]
    counts = Counter(prefix for parts in splits for prefix in {prefix for prefix, _, _ in parts})
    prefix, members = max(counts.items(), key=lambda item: item[1], default=("", 0))
    blocks = {number for parts in splits for found, number, _ in parts if found == prefix}
    if len(blocks) < LEAST_BLOCKS or 2 * members < len(names):
        return [Place(name, None) for name in names]
    root = prefix.rpartition(".")[0]
    return [_place(name, parts, prefix, root) for name, parts in zip(names, splits, strict=True)]


def _place(name: str, parts: list[tuple[str, int, str]], prefix: str, root: str) -> Place:
    for found, number, rest in parts:
        if found == prefix:
            return Place(rest, number)
    return Place(name.removeprefix(f"{root}.") if root else name, None)


def _split(name: str) -> list[tuple[str, int, str]]:
    """Every way to read a name as list, number and rest: `("model.layers", 3, "mlp.up_proj")`."""
    return [
        (name[: match.start()], int(match[1]), name[match.end() :])
        for match in re.finditer(r"\.(\d+)\.", name)
    ]
