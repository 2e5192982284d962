"""One choice a part under a budget: every best trade of weight against value.

Source: Nemhauser and Ullmann, "Discrete Dynamic Programming and Capital Allocation" (1969), for the
multiple-choice knapsack by dynamic programming: parts are taken in one by one, and of what was
chosen so far only trades are kept that no other beats in both weight and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POINTS = 16_384
"""So many trades are kept at most; where there are more, some are left out, evenly spaced."""


@dataclass(frozen=True, eq=False)
class Front:
    """Trades of which none is beaten in both, the lightest first.

    Attributes:
        weights: float64 [P], ascending.
        values: float64 [P], descending; less is better.
        exact: whether no trade was left out on the way.
    """

    weights: NDArray[np.float64]
    values: NDArray[np.float64]
    exact: bool
    _steps: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]

    def picks(self, point: int) -> tuple[int, ...]:
        """Which option of each part makes a trade."""
        chosen = []
        for before, option in reversed(self._steps):
            chosen.append(int(option[point]))
            point = int(before[point])
        return tuple(reversed(chosen))

    def within_weight(self, limit: float) -> tuple[int, bool]:
        """The trade of least value that weighs no more than a limit, and whether there is one.

        Where there is none, the lightest.
        """
        fitting = int(np.searchsorted(self.weights, limit, side="right"))
        return max(fitting - 1, 0), fitting > 0

    def within_value(self, limit: float) -> tuple[int, bool]:
        """The lightest trade of no more value than a limit, and whether there is one.

        Where there is none, that of least value.
        """
        fitting = np.flatnonzero(self.values <= limit)
        return (int(fitting[0]), True) if len(fitting) else (len(self.values) - 1, False)


def front(parts: Sequence[Sequence[tuple[float, float]]], points: int = POINTS) -> Front:
    """The front of all ways to choose one option of each part, weights and values added up.

    Args:
        parts: for each the weight and the value of its options, at least one.
        points: how many trades to keep at most. With more distinct sums of weights than that the
            front is an approximation: each of its trades is a real one, but a better one may be
            missing.
    """
    weights, values = np.zeros(1), np.zeros(1)
    steps = []
    exact = True
    for options in parts:
        added = np.array(options, dtype=np.float64)
        sums = (weights[:, None] + added[:, 0]).ravel()
        totals = (values[:, None] + added[:, 1]).ravel()
        order = np.lexsort((totals, sums))
        sums, totals = sums[order], totals[order]
        lowest = np.minimum.accumulate(totals)
        kept = np.flatnonzero(np.r_[True, totals[1:] < lowest[:-1]])
        if len(kept) > points:
            exact = False
            kept = kept[_spaced(sums[kept], points)]
        weights, values = sums[kept], totals[kept]
        steps.append((order[kept] // len(added), order[kept] % len(added)))
    return Front(weights, values, exact, tuple(steps))


def _spaced(weights: NDArray[np.float64], points: int) -> NDArray[np.bool_]:
    """Which of ascending weights to keep: the first, and the last of each of equal cells."""
    share = (weights - weights[0]) / (weights[-1] - weights[0])
    cells = np.minimum((share * (points - 1)).astype(np.int64), points - 2)
    last: NDArray[np.bool_] = np.r_[cells[1:] != cells[:-1], True]
    last[0] = True
    return last
