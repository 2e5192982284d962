"""Drawing with matplotlib for a page: colours of the page's scheme, text as text, unique ids."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Colours that stand for roles. In the page each becomes a CSS variable, so that one drawing fits
# the light scheme and the dark one.
INK, MUTED, GRID, BEFORE, AFTER, WORSE = (f"#00000{place}" for place in range(1, 7))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    BEFORE: "--before",
    AFTER: "--after",
    WORSE: "--worse",
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text that can be selected, searched and read aloud
    "svg.hashsalt": "planish",  # the same drawing gives the same bytes
    "text.parse_math": False,
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "xtick.color": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "patch.linewidth": 0.9,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made inside fit the page."""
    with mpl.rc_context(_STYLE):
        yield


def inline(figure: Figure, name: str, alt: str) -> str:
    """A figure as an `<svg>` element, in which every text is escaped.

    Args:
        figure: made inside `styled`.
        name: unique in the page; ids are made from it.
        alt: what the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r"url\(#", f"url(#{name}-", drawing)
    drawing = re.sub(r'href="#', f'href="#{name}-', drawing)
    drawing = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 inherit", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    head, _, body = drawing.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    opening = f'<svg {box[0] if box else ""} role="img" aria-labelledby="{name}-alt">'
    return f'{opening}<title id="{name}-alt">{escape(alt)}</title>{body}'
