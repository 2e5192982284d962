"""What the page says of structure: shapes before and after, and the axes that became shorter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from planish.report import figures, structure_figures
from planish.report.blocks import kinds_of
from planish.report.bundles import Bundle, bundles, span
from planish.report.pictures import Picture, picture
from planish.report.words import ABSENT, TIMES, count, percent

Json = Mapping[str, Any]

MOST_BUNDLES = 6
"""So many axes that differ from one another are drawn; the table has the layers of all."""


def structure(manifest: Json) -> Json | None:
    """Table and pictures of what changed its shape; None if nothing did.

    Args:
        manifest: what `planish.json` holds; of older artifacts, which tell no shapes, too.
    """
    layers = manifest["layers"]
    same = sum(not _changed(layer) for layer in layers)
    if same == len(layers):
        return None
    found = bundles(manifest.get("groups", ()), [layer["layer"] for layer in layers])
    return {
        "rows": list(_rows(layers)),
        "same": same,
        "bundles": len(found),
        "shown": min(len(found), MOST_BUNDLES),
        "groups": _groups_picture(found[:MOST_BUNDLES]),
        "shares": _shares_picture(layers),
    }


def _changed(layer: Json) -> bool:
    """Whether a layer's shapes are others; one whose weight is stored transposed is as large."""
    before, after = (sorted(map(sorted, side)) for side in layer.get("shapes", ((), ())))
    return before != after


def _rows(layers: Sequence[Json]) -> Iterator[Json]:
    """One row for the blocks in which a kind of layer changed alike."""
    for kind in kinds_of(layers):
        alike: dict[str, list[tuple[Json, int | None]]] = {}
        for layer, block in zip(kind.layers, kind.blocks, strict=True):
            if _changed(layer):
                alike.setdefault(repr(layer["shapes"]), []).append((layer, block))
        for several in alike.values():
            yield _row(kind.name, several)


def _row(name: str, alike: Sequence[tuple[Json, int | None]]) -> Json:
    before, after = (sum(one["parameters"][side] for one, _ in alike) for side in (0, 1))
    shapes = alike[0][0]["shapes"]
    return {
        "layer": name,
        "blocks": _blocks([block for _, block in alike]),
        "before": _shapes(shapes[0]),
        "after": _shapes(shapes[1]),
        "parameters": (count(before), count(after)),
        "share": percent(after / before) if before else "new",
    }


def _blocks(blocks: Sequence[int | None]) -> str:
    """Which blocks, as runs: `0-3, 7`."""
    known = [block for block in blocks if block is not None]
    runs = groupby(enumerate(known), key=lambda pair: pair[1] - pair[0])
    ends = [[block for _, block in run] for _, run in runs]
    return ", ".join(span((run[0], run[-1])) for run in ends)


def _shapes(shapes: Iterable[Sequence[int]]) -> str:
    return ", ".join(f" {TIMES} ".join(map(str, shape)) for shape in shapes) or ABSENT


def _groups_picture(found: Sequence[Bundle]) -> Picture | None:
    if not found:
        return None
    said = "; ".join(f"{one}, through {', '.join(row.name for row in one.rows)}" for one in found)
    return picture(
        "groups",
        f"Bars for the tensors that share an axis, by axis: {said}.",
        lambda width: structure_figures.groups(found, width),
    )


def _shares_picture(layers: Sequence[Json]) -> Picture | None:
    """A map of what is left of what there was, where layers recur in blocks."""
    cells = [_cell(layer) for layer in layers if layer["parameters"][0]]
    kinds = [kind for kind in kinds_of(cells) if any(map(_changed, kind.layers))]
    if not any(len(kind.layers) > 1 for kind in kinds):
        return None
    found = [layer["share"] for kind in kinds for layer in kind.layers]
    left = [share for share in found if share is not None]
    least = f"; the least that is left of one is {percent(min(left))}" if left else ""
    return picture(
        "shares",
        f"A map of {len(found)} layers by kind and block: {found.count(None)} are gone{least}.",
        lambda width: figures.shares(kinds, width),
    )


def _cell(layer: Json) -> Json:
    before, after = layer["parameters"]
    return {**layer, "share": min(after / before, 1.0) if after else None}


def trials(changes: Sequence[Json], place: int) -> Json | None:
    """The candidates that a step chose from, with their curve; None where it tried none.

    Args:
        changes: `planish.ir.program.Change` as JSON.
        place: of the step, to name the picture by.
    """
    tried = next((change["tried"] for change in changes if change.get("tried")), None)
    if tried is None:
        return None
    made = sorted(tried["made"], key=lambda one: (-one["left"], one["lost"]))
    chosen = next(one for one in made if one["chosen"])
    return {
        "counted": tried["counted"],
        "unit": tried["unit"],
        "rows": [
            {**one, "left": percent(one["left"]), "lost": f"{one['lost']:.4f}"} for one in made
        ],
        "picture": picture(
            f"trials{place}",
            f"Loss by size of {len(made)} candidates; chosen was {chosen['what']}, which leaves "
            f"{percent(chosen['left'])} of the {tried['counted']} and loses {chosen['lost']:.4f} "
            f"{tried['unit']}.",
            lambda width: structure_figures.curve(made, tried["counted"], tried["unit"], width),
        ),
    }
