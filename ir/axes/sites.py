"""What is done along an axis, and what that leaves possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Symmetry = Literal["permute", "cut", "drop", "rotate"]

SYMMETRIES: tuple[Symmetry, ...] = ("permute", "cut", "drop", "rotate")
"""Permute: reorder the indices. Cut: remove some, equal to setting them to zero. Drop: remove some
that compete, as if their scores were minus infinity. Rotate: mix them by an orthogonal matrix."""


@dataclass(frozen=True)
class Site:
    """Something that is done along an axis.

    Attributes:
        kind: what (`ALLOWS`).
        node: where.
        operator: by which operator.
        where: the module or source line, if known.
    """

    kind: str
    node: str
    operator: str
    where: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.kind} at {self.operator} %{self.node}{place}"


ALL: frozenset[Symmetry] = frozenset(SYMMETRIES)
_REORDER: frozenset[Symmetry] = frozenset({"permute", "cut", "drop"})
_COMPETE: frozenset[Symmetry] = frozenset({"permute", "drop"})
_ORDER_ONLY: frozenset[Symmetry] = frozenset({"permute"})
_NOTHING: frozenset[Symmetry] = frozenset()

ALLOWS: dict[str, frozenset[Symmetry]] = {
    # linear along the axis
    "linear": ALL,
    "add": ALL,
    "produced by a weight": ALL,
    "contracted with a weight": ALL,
    "contracted": ALL,
    "rms norm": ALL,
    # the same for every index, each by itself
    "each by itself": _REORDER,
    "scaled by a parameter": _REORDER,
    "multiplied": _REORDER,
    "homogeneous": _REORDER,
    "shifted": _REORDER,
    "batched": _REORDER,
    "repeated": _REORDER,
    "summed": _REORDER,
    # any order, and as few as are left
    "softmax": _COMPETE,
    "chosen": _COMPETE,
    "named": _COMPETE,
    # any order, but all of them
    "averaged": _ORDER_ONLY,
    "maximum": _ORDER_ONLY,
    "statistic": _ORDER_ONLY,
    "ranked": _ORDER_ONLY,
    "layer norm": _ORDER_ONLY,
    # places that count
    "input": _NOTHING,
    "output": _NOTHING,
    "state": _NOTHING,
    "counted": _NOTHING,
    "looked up": _NOTHING,
    "written by index": _NOTHING,
    "neighbours": _NOTHING,
    "running": _NOTHING,
    "sorted": _NOTHING,
    "transformed": _NOTHING,
    "picked": _NOTHING,
    "opaque": _NOTHING,
}
"""What each kind of site leaves possible. Along a softmax, an average or a layer norm a cut runs,
and is not what setting to zero gives. `named` is what integers pick that name
places along an axis and move with it (`planish.ir.axes.names`)."""
