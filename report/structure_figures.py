"""Pictures of structure: what an axis runs through, and what smaller models lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from planish.report.bundles import Bundle, Row, span
from planish.report.figures import PHONE, ROW
from planish.report.svg import AFTER, BEFORE, INK, MUTED
from planish.report.words import TIMES, percent, shortened

CELLS = 16
"""Indices of an axis are drawn one by one if they are no more than so many."""

MOST_ROWS = 14
"""So many rows of one axis are drawn."""

HEIGHT = 0.62
"""Of a bar, as a share of its row."""


def groups(bundles: Sequence[Bundle], width: float) -> Figure:
    """A bar for each tensor that an axis runs through: solid what is left, outlined what went.

    Bars of one axis are equally long and joined at the left, since an index is either in all of
    them or in none.
    """
    count = sum(2 + min(len(one.rows), MOST_ROWS + 1) for one in bundles)
    figure = Figure(figsize=(width, 0.1 + ROW * count), layout="constrained")
    axes = figure.subplots()
    labels: dict[int, str] = {}
    place = 0
    for one in bundles:
        axes.text(0, place, str(one), color=INK, fontweight="bold", va="center")
        place = _bundle(axes, one, place + 1, labels, width) + 1
    axes.set_ylim(place - 1.4, -0.6)
    axes.set_xlim(-0.015, 1.0 + (0.34 if width > PHONE else 0.7))
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(axis="y", length=0, labelsize=9.5 if width > PHONE else 8)
    axes.set_xticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _bundle(axes: Axes, one: Bundle, place: int, labels: dict[int, str], width: float) -> int:
    """Draw one axis from a row on; gives the row behind it."""
    shown, hidden = one.rows[:MOST_ROWS], one.rows[MOST_ROWS:]
    for offset, row in enumerate(shown):
        labels[place + offset] = _label(row, width)
        _bar(axes, place + offset, one, row)
    last = place + len(shown) - 1
    axes.plot([0, 0], [place - HEIGHT / 2, last + HEIGHT / 2], color=INK, linewidth=1.6)
    for share in {part / one.size for part in one.left} - {1.0}:
        axes.plot([share] * 2, [place - 0.5, last + 0.5], color=INK, linewidth=0.9, dashes=(3, 2))
    if hidden:
        axes.text(0.01, last + 1, f"and {len(hidden)} more", color=MUTED, va="center")
        last += 1
    return last + 1


def _label(row: Row, width: float) -> str:
    repeats = f" {TIMES}{row.number}" if row.number > 1 else ""
    return shortened(row.name, (36 if width > PHONE else 24) - len(repeats)) + repeats


def _bar(axes: Axes, place: int, one: Bundle, row: Row) -> None:
    low, high = (part / row.before for part in row.after or (0, 0))
    changed = low < 1
    colour = AFTER if changed else BEFORE
    _box(axes, place, 0, 1, edgecolor=BEFORE, facecolor="none")
    if low:
        _box(axes, place, 0, low, facecolor=colour, edgecolor="none", alpha=1 if changed else 0.45)
    if high > low:
        _box(axes, place, low, high, facecolor=colour, edgecolor="none", alpha=0.35)
    if one.size <= CELLS:
        for index in range(1, one.size):
            ends = [place - HEIGHT / 2, place + HEIGHT / 2]
            axes.plot([index / one.size] * 2, ends, color=BEFORE, linewidth=0.9)
    axes.annotate(
        _said(row),
        (1, place),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=MUTED,
        fontsize=9.5,
    )


def _box(axes: Axes, place: int, left: float, right: float, **look: Any) -> None:
    axes.add_patch(Rectangle((left, place - HEIGHT / 2), right - left, HEIGHT, **look))


def _said(row: Row) -> str:
    if row.after is None:
        return f"{row.before}, tensor gone"
    return (
        f"{row.before}, kept"
        if min(row.after) == row.before
        else f"{row.before} → {span(row.after)}"
    )


def curve(made: Sequence[Mapping[str, Any]], counted: str, unit: str, width: float) -> Figure:
    """Loss over size: a ring for each candidate, a disc for the chosen one.

    The line is the best for each size or less, from the whole model, which loses nothing.
    """
    figure = Figure(figsize=(width, max(2.6, 0.42 * width)), layout="constrained")
    axes = figure.subplots()
    best = _front(made)
    axes.plot(*zip((1.0, 0.0), *best, strict=True), color=BEFORE, linewidth=1.6, zorder=1)
    axes.scatter(1, 0, s=26, color=BEFORE)
    for one in made:
        face, edge, area = (AFTER, AFTER, 60) if one["chosen"] else ("none", MUTED, 34)
        axes.scatter(
            one["left"], one["lost"], s=area, facecolor=face, edgecolor=edge, linewidth=1, zorder=3
        )
    chosen = next(one for one in made if one["chosen"])
    axes.annotate(
        f"{percent(chosen['left'])}, {chosen['lost']:.3g}",
        (chosen["left"], chosen["lost"]),
        xytext=(9, 7),
        textcoords="offset points",
        color=INK,
        fontsize=9.5,
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(round(value, 6))))
    axes.set_xlabel(f"{counted} left")
    axes.set_ylabel(f"lost, {unit}")
    axes.grid(True)
    axes.tick_params(length=0, labelsize=9.5)
    axes.tick_params(axis="y", labelcolor=MUTED)
    return figure


def _front(made: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Candidates than which none is both smaller and better, from the largest on."""
    points = sorted((one["left"], one["lost"]) for one in made)
    found: list[tuple[float, float]] = []
    for left, lost in reversed(points):
        if all(lost <= other for smaller, other in points if smaller <= left):
            found.append((left, lost))
    return found
