"""Which index of an atom each place of a dimension has, and what a tensor amounts to at each."""

from __future__ import annotations

import torch
from torch import Tensor

from planish.ir.axes.terms import Leaf, Product, Sum, Term, resolved, size_of


def places(term: Term, leaf: Leaf) -> Tensor:
    """For each place of a dimension its index along an atom; -1 where the atom has no part in it.

    Args:
        term: of the dimension, of sizes that are numbers.
        leaf: the atom.

    Returns:
        An int64 vector as long as the dimension.
    """
    term = resolved(term)
    match term:
        case Product(factors=factors):
            found = torch.full((1,), -1)
            for factor in factors:
                inner = places(factor, leaf)
                found = torch.maximum(found[:, None], inner[None]).flatten()
            return found
        case Sum(parts=parts):
            return torch.cat([places(part, leaf) for part in parts])
        case Leaf(size=size):
            if not isinstance(size, int):
                raise TypeError(f"the size {size} is not a number")
            return torch.arange(size) if term is leaf else torch.full((size,), -1)


def gathered(values: Tensor, term: Term, leaf: Leaf) -> Tensor:
    """Sums of a vector's numbers over the places that share an index of an atom, float64 [n].

    Args:
        values: one number for each place of a dimension.
        term: of that dimension.
        leaf: the atom.
    """
    index = places(term, leaf).to(values.device)
    size = size_of(leaf)
    total = torch.zeros(int(str(size)), dtype=torch.float64, device=values.device)
    return total.index_add_(0, index[index >= 0], values[index >= 0].double())
