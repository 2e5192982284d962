"""Rows that a sort arranges: an axis of their own, in an order that data decide.

A sort by names (`planish.ir.axes.names`) puts rows into another order when the names move, all that
lies along them alike. That does not show where each row is worked on by itself and put back: where
nothing forbids the rows another order. So what forbids it, forbids the names to move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from planish.ir.axes.sites import ALLOWS, Site
from planish.ir.axes.terms import Leaf, Term, leaf, leaves, resolved
from planish.ir.flow.laws import Sorting
from planish.ir.flow.polynomial import Count


@dataclass(frozen=True, eq=False)
class _Sort:
    """One sort: the axis that its keys name, the rows that it arranges, and where it is."""

    along: Term
    rows: Term
    site: Site


class SortedRows:
    """The rows of every sort of a flow.

    Attributes:
        terms: of each sort's rows.
    """

    def __init__(self) -> None:
        self.terms: dict[Sorting, Term] = {}
        self._sorts: list[_Sort] = []

    def of(self, by: Sorting, size: Count, along: Term, site: Site) -> Term:
        """The rows of a sort, made when they are first asked for.

        Args:
            by: the sort.
            size: how many rows.
            along: the axis that the keys name; of one index if they name none.
            site: of the sort.
        """
        if by not in self.terms:
            self.terms[by] = leaf(size)
            self._sorts.append(_Sort(along, self.terms[by], site))
        return self.terms[by]

    def settled(
        self, sites: Iterable[tuple[Term, Site]], stored: Iterable[Term]
    ) -> list[tuple[Term, Site]]:
        """What forbids rows another order, as sites of the names that sort them.

        Args:
            sites: all that are known, for terms in their last form.
            stored: the terms of stored tensors, which no order that data decide reaches.

        Returns:
            Sites along the names; and along the rows, which nothing but their sort reorders.
        """
        fixed: dict[Leaf, list[Site]] = {}
        for term, site in sites:
            if "permute" not in ALLOWS[site.kind]:
                for atom in leaves(term):
                    fixed.setdefault(atom, []).append(site)
        kept = {atom for term in stored for atom in leaves(term)}
        times = Counter(resolved(sort.rows) for sort in self._sorts)
        result: list[tuple[Term, Site]] = []
        for sort in reversed(self._sorts):  # the keys of a later one may name rows of an earlier
            rows = resolved(sort.rows)
            whole = isinstance(rows, Leaf) and times[rows] == 1 and rows not in kept
            found = fixed.get(rows, []) if whole and isinstance(rows, Leaf) else [sort.site]
            result += [(sort.along, site) for site in found]
            for name in leaves(sort.along):
                fixed.setdefault(name, []).extend(found)
        return result + [(sort.rows, sort.site) for sort in self._sorts]
