"""The pictures of the report. Each takes JSON values and a width, and gives one drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from planish.report.blocks import Kind
from planish.report.svg import AFTER, BEFORE, INK, MUTED, WORSE
from planish.report.words import TIMES, percent, shortened, size, times

ROW = 0.27
"""Inches a row of a chart takes."""

MARGIN = 0.5
"""Inches for the axis below the rows."""

PHONE = 4.5
"""Narrower drawings than so many inches are for phones: shorter labels, fewer ticks."""

MOST_ROWS = 28
"""A chart with a row a layer shows the largest so many."""


def sizes(kinds: Sequence[Kind], width: float) -> Figure:
    """Bytes of every kind of layer, before as an outline and after as a solid bar."""
    rows = _largest(kinds)
    figure, axes = _rows(len(rows), width, [_label(kind, width) for kind in rows])
    scale, unit = _unit(max(max(kind.nbytes) for kind in rows))
    for place, kind in enumerate(rows):
        before, after = (nbytes / scale for nbytes in kind.nbytes)
        axes.barh(place, before, 0.72, color="none", edgecolor=BEFORE, hatch=None)
        axes.barh(place, after, 0.72, color=AFTER)
        text = " → ".join(map(size, kind.nbytes)) if width > PHONE else size(kind.nbytes[1])
        _beside(axes, max(before, after), place, text)
    longest = max(max(kind.nbytes) for kind in rows) / scale
    axes.set_xlim(0, longest * (1.28 if width > PHONE else 1.4))
    axes.set_xlabel(unit)
    axes.grid(axis="x")
    return figure


def _largest(kinds: Sequence[Kind]) -> list[Kind]:
    """The kinds worth a row each, in their order."""
    ranked = sorted(kinds, key=lambda kind: -max(kind.nbytes))[:MOST_ROWS]
    least = max(max(kind.nbytes) for kind in kinds) / 1000
    return [kind for kind in kinds if kind in ranked and max(kind.nbytes) >= least]


def _unit(largest: float) -> tuple[float, str]:
    power = max(0, min(3, int(math.log10(max(largest, 1)) // 3)))
    return 1000.0**power, ("bytes", "kB", "MB", "GB")[power]


def _label(kind: Kind, width: float) -> str:
    """The kind's name, cut in front where it is long, and how many layers are of it."""
    repeats = f" {TIMES}{len(kind.layers)}" if len(kind.layers) > 1 else ""
    room = (28 if width > PHONE else 20) - len(repeats)
    return shortened(kind.name, room) + repeats


def _rows(count: int, width: float, labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A chart with one labelled row each, the first on top."""
    figure = Figure(figsize=(width, MARGIN + ROW * count), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(count), labels)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0, labelsize=9.5)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6 if width > PHONE else 3, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _beside(axes: Axes, x: float, row: float, text: str, colour: str = MUTED) -> None:
    """A text right of a bar's end."""
    axes.annotate(
        text,
        (x, row),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=9.5,
    )


def errors(kinds: Sequence[Kind], width: float) -> Figure:
    """The relative error of every weight: a map of kinds by blocks, or a bar a layer."""
    touched = [kind for kind in kinds if any(layer["error"] for layer in kind.layers)]
    if max(len(kind.layers) for kind in touched) > 1:
        worst = max(layer["error"] or 0.0 for kind in touched for layer in kind.layers)
        return _map(touched, "error", worst, width)
    rows = sorted(touched, key=lambda kind: -kind.layers[0]["error"])[:MOST_ROWS]
    rows = [kind for kind in touched if kind in rows]
    figure, axes = _rows(len(rows), width, [_label(kind, width) for kind in rows])
    values = [kind.layers[0]["error"] for kind in rows]
    axes.barh(range(len(rows)), values, 0.62, color=AFTER)
    for place, value in enumerate(values):
        _beside(axes, value, place, percent(value))
    axes.set_xlim(0, 1.2 * max(values))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.grid(axis="x")
    return figure


def shares(kinds: Sequence[Kind], width: float) -> Figure:
    """What share of each layer is left: a map of kinds by blocks."""
    return _map(kinds, "share", 1.0, width)


def _map(kinds: Sequence[Kind], what: str, most: float, width: float) -> Figure:
    """A cell for each kind and block; the darker, the larger it is. None of it is no cell."""
    figure, axes = _rows(len(kinds), width, [_label(kind, width) for kind in kinds])
    last = max(block or 0 for kind in kinds for block in kind.blocks)
    for place, kind in enumerate(kinds):
        for layer, block in zip(kind.layers, kind.blocks, strict=True):
            # A layer outside the blocks fills the row: there is only one of it.
            left, span = (-0.5, last + 1) if block is None else (block - 0.5, 1)
            if layer[what] is not None:
                _cell(axes, left, place - 0.44, span, 0.88, layer[what] / most)
    axes.set_xlim(-0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(10 if width > PHONE else 6, integer=True))
    axes.set_xlabel("block")
    axes.spines["bottom"].set_visible(False)
    return figure


def _cell(
    axes: Axes, left: float, bottom: float, width: float, height: float, share: float
) -> None:
    axes.add_patch(
        Rectangle(
            (left + 0.04, bottom),
            width - 0.08,
            height,
            facecolor=AFTER,
            alpha=0.06 + 0.94 * share,
            linewidth=0,
        )
    )


def perplexities(evaluation: Mapping[str, Any], width: float) -> Figure:
    """Perplexity of the baseline and of the artifact, with a standard error to either side."""
    sides = [("before", evaluation["baseline"], BEFORE), ("after", evaluation["perplexity"], AFTER)]
    found = [(label, side, colour) for label, side, colour in sides if side]
    figure, axes = _rows(len(found), width, [label for label, _, _ in found])
    for place, (_, side, colour) in enumerate(found):
        value, error = side["value"], side["value"] * side["error"]
        axes.barh(place, value, 0.62, color=colour)
        axes.errorbar(value, place, xerr=error, color=INK, elinewidth=1, capsize=3)
        _beside(axes, value + error, place, f"{value:.2f} ± {error:.2f}", INK)
    axes.set_xlim(0, max(side["value"] for _, side, _ in found) * (1.25 if width > PHONE else 1.5))
    axes.set_xlabel("perplexity, lower is better")
    axes.grid(axis="x")
    return figure


TICKS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 10, 20)


def speeds(rows: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """How many times as fast as the other side, on a logarithmic axis, with lowest and highest."""
    compared = [row for row in rows if row["ratio"]]
    labels = [f"{row['phase']}, batch {row['batch']}" for row in compared]
    figure, axes = _rows(len(compared), width, labels)
    axes.axvline(1, color=MUTED, linewidth=1)
    for place, row in enumerate(compared):
        ratio = row["ratio"]
        colour = WORSE if ratio["high"] < 1 else AFTER if ratio["low"] > 1 else MUTED
        axes.barh(place, ratio["median"] - 1, 0.5, left=1, color=colour, alpha=0.85)
        axes.plot([ratio["low"], ratio["high"]], [place, place], color=INK, linewidth=1.2)
        _beside(axes, max(ratio["high"], 1), place, times(ratio["median"]), INK)
    low = min(1.0, *(row["ratio"]["low"] for row in compared))
    high = max(1.0, *(row["ratio"]["high"] for row in compared))
    axes.set_xscale("log")
    axes.set_xlim(low / 1.08, high * (1.25 if width > PHONE else 1.6))
    ticks = [
        tick for tick in (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 10, 20) if low <= tick <= high
    ]
    axes.xaxis.set_major_locator(FixedLocator(sorted({1, *ticks})))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{TIMES}"))
    axes.grid(axis="x")
    return figure
