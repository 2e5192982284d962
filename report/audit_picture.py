"""The way of a leak as a picture: lanes of requests, the node where they meet, mixed lanes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from planish.report.audit_rules import Json, short_operator

LANES = (34, 58, 82)
"""Where the lanes of three requests run, from left to right."""

REQUESTS = "ABC"
MIDDLE = LANES[1]
TEXT = 118
WIDTH = 380
STEP = 44
ROOM = 14  # above and below the meeting, for the lanes to come together
MOST_STEPS = 4
"""So many nodes are drawn before the meeting, and as many after it."""

PIECE = 5
"""A mixed lane changes colour after so many units."""

OPERATOR_LENGTH, NODE_LENGTH = 30, 42


@dataclass(frozen=True)
class Row:
    """One stop of the way: `input`, `node`, `gap`, `meet` or `output`, and what stands beside."""

    form: str
    title: str
    detail: str = ""


def draw(finding: Json, name: str) -> str:
    """An `<svg>` element, in which every text is escaped.

    Args:
        finding: as JSON.
        name: unique in the page; ids are made from it.
    """
    stops = rows(finding)
    known = finding["kind"] != "unknown"
    meeting = next(place for place, row in enumerate(stops) if row.form == "meet")
    heights = [24.0]
    for one, following in pairwise(stops):
        room = ROOM if "meet" in (one.form, following.form) else 0
        heights.append(heights[-1] + STEP + room)
    bottom = heights[-1] + 30
    parts = [_lanes(heights, meeting, known)]
    parts += [_stop(row, height, known) for row, height in zip(stops, heights, strict=True)]
    alt = escape(_alt(finding, stops, known))
    return (
        f'<svg class="way" viewBox="0 0 {WIDTH} {bottom:.0f}" role="img" '
        f'aria-labelledby="{name}"><title id="{name}">{alt}</title>{"".join(parts)}</svg>'
    )


def rows(finding: Json) -> list[Row]:
    """The stops of a finding's way; a long one is shortened, the meeting always shown."""
    path = list(finding["path"])
    node = finding["node"]
    meeting = next((n for n, one in enumerate(path) if _holds(one["node"], node)), None)
    meet = Row("meet", short_operator(finding["operator"]), node)
    if meeting is None:
        known = [_row(one) for one in path]
        before = [row for row in known if row.form == "input"] or [Row("input", "the inputs")]
        after = [row for row in known if row.form == "output"] or [_reached(finding)]
        return [*before, Row("gap", ""), meet, Row("gap", ""), *after]
    before = [_row(one) for one in path[:meeting]]
    if not before and finding["operator"] != "input":
        before = [Row("input", "what all are given")]
    after = [_row(one) for one in path[meeting + 1 :]] or [_reached(finding)]
    return [*_shortened(before, keep_first=True), meet, *_shortened(after, keep_first=False)]


def _holds(place: str, node: str) -> bool:
    """Whether a node is the one at a place, or lies in a loop or branch there."""
    return place == node or node.startswith(f"{place}/")


def _reached(finding: Json) -> Row:
    return Row("output", ", ".join(finding["outputs"]), "output")


def _row(place: Json) -> Row:
    operator = place["operator"]
    if operator in ("input", "output"):
        return Row(operator, place["node"], operator)
    return Row("node", short_operator(operator), place["node"])


def _shortened(stops: list[Row], *, keep_first: bool) -> list[Row]:
    """The stops next to the meeting and the one at the end of the graph."""
    inner = stops[1:] if keep_first else stops[:-1]
    left_out = len(inner) - MOST_STEPS
    if left_out < 2:
        return stops
    gap = Row("gap", f"{left_out} more nodes")
    if keep_first:
        return [stops[0], gap, *inner[-MOST_STEPS:]]
    return [*inner[:MOST_STEPS], gap, stops[-1]]


def _lanes(heights: Sequence[float], meeting: int, known: bool) -> str:
    """The lines behind the stops: one colour a request, then all colours in each."""
    top, meet, end = heights[0], heights[meeting], heights[-1]
    parts = []
    for number, x in enumerate(LANES):
        if meeting:
            above = (
                f"M{x} {top:.0f}V{meet - 40:.0f}C{x} {meet - 24:.0f} {MIDDLE} {meet - 28:.0f} "
                f"{MIDDLE} {meet - 8:.0f}"
            )
            parts.append(f'<path class="lane r{number}" d="{above}"/>')
        below = (
            f"M{MIDDLE} {meet + 8:.0f}C{MIDDLE} {meet + 28:.0f} {x} {meet + 24:.0f} {x} "
            f"{meet + 40:.0f}V{end:.0f}"
        )
        if not known:
            parts.append(f'<path class="lane unknown" d="{below}"/>')
            continue
        for colour in range(len(LANES)):
            shift = -PIECE * ((colour - number) % len(LANES))
            parts.append(
                f'<path class="lane mixed r{colour}" d="{below}" '
                f'stroke-dasharray="{PIECE} {PIECE * (len(LANES) - 1)}" '
                f'stroke-dashoffset="{shift}"/>'
            )
    return "".join(parts)


def _stop(row: Row, y: float, known: bool) -> str:
    if row.form == "gap":
        dots = "".join(
            f'<circle class="gap" cx="{MIDDLE}" cy="{y + place:.0f}" r="2"/>'
            for place in (-7, 0, 7)
        )
        cover = f'<rect class="cover" x="22" y="{y - 13:.0f}" width="72" height="26"/>'
        return cover + dots + _text(TEXT, y + 4, "detail", row.title, NODE_LENGTH)
    left, wide = LANES[0] - 16, LANES[-1] - LANES[0] + 32
    if row.form == "input":
        marks = "".join(_disc(x, y, number) for number, x in enumerate(LANES))
    elif row.form == "output":
        marks = "".join(
            _pie(x, y, number) if known else _blank(x, y, number) for number, x in enumerate(LANES)
        )
    else:
        kind = ("meet" if known else "meet unknown") if row.form == "meet" else "stop"
        marks = (
            f'<rect class="{kind}" x="{left}" y="{y - 12:.0f}" width="{wide}" height="24" rx="7"/>'
        )
        if row.form == "meet":
            word = "meet" if known else "?"
            marks += f'<text class="word" x="{MIDDLE}" y="{y + 4:.0f}">{word}</text>'
    title = "title red" if row.form == "meet" and known else "title"
    beside = _text(TEXT, y - 2, title, row.title, OPERATOR_LENGTH)
    detail = row.detail if row.form != "output" else f"{row.detail}, given to A, B and C"
    if row.form == "input":
        detail = "input, rows of requests A, B and C"
    if row.form == "output" and row.title.startswith("state "):
        detail = "kept until the next call"
    return marks + beside + (_text(TEXT, y + 13, "detail", detail, NODE_LENGTH) if detail else "")


def _text(x: float, y: float, kind: str, text: str, most: int) -> str:
    shown = shortened(text, most)
    whole = f"<title>{escape(text)}</title>" if shown != text else ""
    return f'<text class="{kind}" x="{x}" y="{y:.0f}">{whole}{escape(shown)}</text>'


def shortened(text: str, most: int) -> str:
    """A long name without its middle: its end tells most."""
    if len(text) <= most:
        return text
    head = most // 3
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def _disc(x: float, y: float, number: int) -> str:
    return (
        f'<circle class="disc r{number}" cx="{x}" cy="{y:.0f}" r="10"/>'
        f'<text class="letter" x="{x}" y="{y + 4:.0f}">{REQUESTS[number]}</text>'
    )


def _blank(x: float, y: float, number: int) -> str:
    return (
        f'<circle class="blank" cx="{x}" cy="{y:.0f}" r="10"/>'
        f'<text class="letter dark" x="{x}" y="{y + 4:.0f}">{REQUESTS[number]}</text>'
    )


def _pie(x: float, y: float, number: int) -> str:
    """The answer to one request, which holds something of each."""
    parts = []
    for colour in range(len(LANES)):
        ends = []
        for turn in (colour, colour + 1):
            angle = 2 * math.pi * turn / len(LANES) - math.pi / 2
            ends.append(f"{x + 10 * math.cos(angle):.2f} {y + 10 * math.sin(angle):.2f}")
        parts.append(
            f'<path class="disc r{colour}" d="M{x} {y:.0f}L{ends[0]}A10 10 0 0 1 {ends[1]}Z"/>'
        )
    letter = f'<text class="under" x="{x}" y="{y + 24:.0f}">{REQUESTS[number]}</text>'
    return "".join(parts) + letter


def _alt(finding: Json, stops: Sequence[Row], known: bool) -> str:
    names = [row.title for row in stops if row.form != "gap"]
    at = short_operator(finding["operator"])
    what = f"The requests meet in {at}" if known else f"What {at} reads is not known"
    return f"The way from {names[0]} to {names[-1]}. {what}. Stops: {', '.join(names)}."
