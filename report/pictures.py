"""Pictures as the page takes them: drawn for a screen and for a phone, with a text for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from planish.report import figures
from planish.report.blocks import Kind, kinds_of
from planish.report.svg import inline, styled
from planish.report.words import percent, size

WIDE, NARROW = 7.6, 3.5
"""Inches of the two drawings."""


@dataclass(frozen=True)
class Picture:
    """One picture as SVG elements: `wide` for a screen, `narrow` for a phone."""

    wide: str
    narrow: str


def of_layers(deltas: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
    """Sizes and errors of layers, where there are any."""
    kinds = kinds_of(deltas)
    made = {}
    if kinds:
        made["sizes"] = picture(
            "sizes", _sizes_alt(kinds), lambda width: figures.sizes(kinds, width)
        )
    if any(delta["error"] for delta in deltas):
        made["errors"] = picture(
            "errors", _errors_alt(deltas), lambda width: figures.errors(kinds, width)
        )
    return made


def _sizes_alt(kinds: Sequence[Kind]) -> str:
    parts = [
        f"{kind.name} {size(kind.nbytes[0])} before and {size(kind.nbytes[1])} after"
        for kind in sorted(kinds, key=lambda kind: -kind.nbytes[0])[:5]
    ]
    return f"Bars: bytes of each kind of layer. The largest: {'; '.join(parts)}."


def _errors_alt(deltas: Sequence[Mapping[str, Any]]) -> str:
    found = sorted((delta["error"], delta["layer"]) for delta in deltas if delta["error"])
    return (
        f"Relative error of {len(found)} weights, from {percent(found[0][0])} in {found[0][1]} to "
        f"{percent(found[-1][0])} in {found[-1][1]}."
    )


def of_quality(evaluation: Mapping[str, Any], place: int) -> Picture | None:
    """Perplexity before and after, where there is a before."""
    before, after = evaluation["baseline"], evaluation["perplexity"]
    if not before:
        return None
    alt = f"Bars: perplexity {before['value']:.2f} before and {after['value']:.2f} after."
    return picture(f"quality{place}", alt, lambda width: figures.perplexities(evaluation, width))


def of_speed(benchmark: Mapping[str, Any], place: int) -> Picture | None:
    """How many times as fast as the other side, where there is one."""
    rows = [row for row in benchmark["rows"] if row["ratio"]]
    if not rows:
        return None
    parts = [f"{row['phase']} at batch {row['batch']} {row['ratio']['median']:.2f}" for row in rows]
    alt = f"Bars: speed as a multiple of {benchmark['against']}: {', '.join(parts)}."
    return picture(f"speed{place}", alt, lambda width: figures.speeds(rows, width))


def picture(name: str, alt: str, draw: Callable[[float], Figure]) -> Picture:
    """A picture of both widths.

    Args:
        name: unique in the page.
        alt: what it shows, for those who do not see it.
        draw: given a width in inches.
    """
    with styled():
        wide, narrow = draw(WIDE), draw(NARROW)
    return Picture(inline(wide, f"{name}-wide", alt), inline(narrow, f"{name}-narrow", alt))
