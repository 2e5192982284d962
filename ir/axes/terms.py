"""What a dimension is made of: atoms, products of them, sums of them.

A term is a tree. A leaf is a plain set of indices, an atom. A product is what `view` splits and
joins, in row-major order: heads times width. A sum is what `cat` and `split` make: query, key and
value one after another. Unification binds leaves to terms, as in logic programming, until the terms
of two dimensions that were found to be one are equal.

A leaf may occur twice in one term: the halves of a rotary embedding give `h + h`, which says that
both have to be cut in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Union

from planish.ir.flow.polynomial import Count, Polynomial, product, quotient


class CannotUnify(Exception):
    """Two terms were found to be one dimension and have no common form."""


@dataclass(eq=False)
class Leaf:
    """An atom, or a name bound to another term.

    Attributes:
        size: how many indices.
        bound: what it turned out to be.
        frozen: it may not be bound to anything with structure: an index counts along it.
    """

    size: Count
    bound: Term | None = field(default=None)
    frozen: bool = False


@dataclass(frozen=True, eq=False)
class Product:
    """Row-major digits, the outermost first. None of them for a dimension of size 1."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Sum:
    """Consecutive segments."""

    parts: tuple[Term, ...]


Term = Union[Leaf, Product, Sum]  # noqa: UP007  (a forward reference)

UNIT = Product(())
"""The term of a dimension of size 1, which carries nothing."""


def leaf(size: Count) -> Term:
    """A fresh atom; nothing for a size of 1."""
    return UNIT if size == 1 else Leaf(size)


def size_of(term: Term) -> Count:
    """How many indices a term has."""
    match term:
        case Leaf(size=size):
            return size
        case Product(factors=factors):
            return product(size_of(one) for one in factors)
        case Sum(parts=parts):
            total: Count = 0
            for one in parts:
                total = total + size_of(one)
            return total


def resolved(term: Term) -> Term:
    """A term in its one form: bound leaves replaced, nested products and sums flat."""
    while isinstance(term, Leaf) and term.bound is not None:
        term = term.bound
    if isinstance(term, Product):
        factors: list[Term] = []
        for one in map(resolved, term.factors):
            factors += one.factors if isinstance(one, Product) else [one]
        return factors[0] if len(factors) == 1 else Product(tuple(factors))
    if isinstance(term, Sum):
        parts: list[Term] = []
        for one in map(resolved, term.parts):
            parts += one.parts if isinstance(one, Sum) else [one]
        parts = [one for one in parts if size_of(one) != 0]
        return parts[0] if len(parts) == 1 else Sum(tuple(parts))
    return term


def leaves(term: Term) -> Iterator[Leaf]:
    """The atoms of a term, each as often as it occurs."""
    term = resolved(term)
    match term:
        case Leaf():
            yield term
        case Product(factors=several) | Sum(parts=several):
            for one in several:
                yield from leaves(one)


def unify(one: Term, other: Term) -> None:
    """Make two terms one.

    Raises:
        CannotUnify: if they have no common form; some leaves may be bound by then.
    """
    one, other = resolved(one), resolved(other)
    if one is other:
        return
    if size_of(one) != size_of(other):
        raise CannotUnify(f"sizes {size_of(one)} and {size_of(other)} differ")
    if isinstance(other, Leaf) and not isinstance(one, Leaf):
        one, other = other, one
    if isinstance(one, Leaf):
        _bind(one, other)
    elif isinstance(one, Product) and isinstance(other, Product):
        _unify_products(list(one.factors), list(other.factors))
    elif isinstance(one, Sum) and isinstance(other, Sum):
        _unify_sums(list(one.parts), list(other.parts))
    elif isinstance(one, Product) and isinstance(other, Sum):
        _unify_mixed(one, other)
    elif isinstance(one, Sum) and isinstance(other, Product):
        _unify_mixed(other, one)


def _bind(one: Leaf, other: Term) -> None:
    if any(inner is one for inner in leaves(other)):
        raise CannotUnify("a dimension would contain itself")
    if isinstance(other, Leaf):
        # The survivor keeps what is known of either.
        other.frozen = other.frozen or one.frozen
    elif one.frozen:
        raise CannotUnify("an index counts along a dimension that has parts")
    one.bound = other


def _unify_products(one: list[Term], other: list[Term]) -> None:
    """Digit by digit from the outermost; where one is larger, it is split."""
    while one and other:
        left, right = one.pop(0), other.pop(0)
        if size_of(left) == size_of(right):
            unify(left, right)
        elif quotient(size_of(left), size_of(right)) is not None:
            outer, inner = split_product(left, size_of(right))
            unify(outer, right)
            one.insert(0, inner)
        elif quotient(size_of(right), size_of(left)) is not None:
            outer, inner = split_product(right, size_of(left))
            unify(left, outer)
            other.insert(0, inner)
        else:
            raise CannotUnify(f"digits of {size_of(left)} and {size_of(right)} do not fit")
    if one or other:
        raise CannotUnify("products of different length")


def split_product(term: Term, outer: Count) -> tuple[Term, Term]:
    """A term as an outer digit of this size and the rest.

    Raises:
        CannotUnify: if it cannot be split there.
    """
    term = resolved(term)
    size = size_of(term)
    inner = quotient(size, outer)
    if inner is None:
        raise CannotUnify(f"{outer} does not divide {size}")
    if outer == 1 or inner == 1:
        return (UNIT, term) if outer == 1 else (term, UNIT)
    if isinstance(term, Leaf):
        if term.frozen:
            raise CannotUnify("an index counts along a dimension that is split")
        parts = (Leaf(outer), Leaf(inner))
        term.bound = Product(parts)
        return parts
    if isinstance(term, Product):
        return split_factors(term, outer)
    # A sum of segments that all have the inner digit: the outer digit is a sum.
    digit = Leaf(inner)
    heads: list[Term] = []
    for part in term.parts:
        count = quotient(size_of(part), inner)
        if count is None:
            raise CannotUnify(f"a segment of {size_of(part)} is no multiple of {inner}")
        head, rest = split_product(part, count)
        unify(rest, digit)
        heads.append(head)
    return Sum(tuple(unit_as_leaf(head) for head in heads)), digit


def unit_as_leaf(term: Term) -> Term:
    """In a sum, a segment of one index still takes a place."""
    return Leaf(1) if isinstance(term, Product) and not term.factors else term


def split_factors(term: Term, outer: Count) -> tuple[Term, Term]:
    """Digits as outer ones of this size together and the rest.

    Raises:
        CannotUnify: if they cannot be divided there.
    """
    factors: list[Term] = list(term.factors) if isinstance(term, Product) else [term]
    taken: list[Term] = []
    left = outer
    while left != 1:
        if not factors:
            raise CannotUnify("a reshape to more elements")
        head = factors.pop(0)
        rest = quotient(left, size_of(head))
        if rest is not None:
            taken.append(head)
            left = rest
            continue
        first, second = split_product(head, left)
        taken.append(first)
        factors.insert(0, second)
        left = 1
    return resolved(Product(tuple(taken))), resolved(Product(tuple(factors)))


def _unify_sums(one: list[Term], other: list[Term]) -> None:
    """Segment by segment; where one is longer, it is cut."""
    while one and other:
        left, right = one.pop(0), other.pop(0)
        difference = size_of(left) - size_of(right)
        if difference == 0:
            unify(left, right)
        elif isinstance(difference, Polynomial):
            raise CannotUnify("segments whose order of boundaries is not known")
        elif difference > 0:
            first, second = split_sum(left, size_of(right))
            unify(first, right)
            one.insert(0, second)
        else:
            first, second = split_sum(right, size_of(left))
            unify(left, first)
            other.insert(0, second)


def split_sum(term: Term, at: Count) -> tuple[Term, Term]:
    """A term as its first `at` indices and the rest.

    Raises:
        CannotUnify: if it cannot be cut there.
    """
    term = resolved(term)
    size = size_of(term)
    if at in (0, size):
        return (Sum(()), term) if at == 0 else (term, Sum(()))
    if isinstance(term, Leaf):
        if term.frozen:
            raise CannotUnify("an index counts along a dimension that is cut")
        parts = (Leaf(at), Leaf(size - at))
        term.bound = Sum(parts)
        return parts
    if isinstance(term, Product):
        head, *rest = term.factors
        inner = product(size_of(one) for one in rest)
        place = quotient(at, inner)
        if place is None:
            raise CannotUnify(f"a cut at {at} goes through digits of {inner}")
        first, second = (unit_as_leaf(one) for one in split_sum(head, place))
        return Product((first, *rest)), Product((second, *rest))
    return _split_parts(list(term.parts), at)


def _split_parts(parts: Sequence[Term], at: Count) -> tuple[Term, Term]:
    taken: list[Term] = []
    rest = list(parts)
    left = at
    while left != 0:
        head = rest.pop(0)
        over = size_of(head) - left
        if isinstance(over, Polynomial):
            raise CannotUnify("a cut whose segment is not known")
        if over <= 0:
            taken.append(head)
            left = -over
            continue
        first, second = split_sum(head, left)
        taken.append(first)
        rest.insert(0, second)
        left = 0
    return resolved(Sum(tuple(taken))), resolved(Sum(tuple(rest)))


def _unify_mixed(digits: Product, segments: Sum) -> None:
    """A product and a sum: the outermost digit is a sum, or it counts equal segments."""
    head, *rest = digits.factors
    inner: Term = Product(tuple(rest))
    width = size_of(inner)
    counts = [quotient(size_of(part), width) for part in segments.parts]
    if None not in counts:
        if all(count == 1 for count in counts):
            # As many segments as the digit counts: each is the rest, and the digit says which.
            _freeze(head)
            for part in segments.parts:
                unify(part, inner)
            return
        heads: list[Term] = []
        for part, count in zip(segments.parts, counts, strict=True):
            outer, low = split_product(part, count if count is not None else 1)
            heads.append(unit_as_leaf(outer))
            unify(low, inner)
        unify(head, Sum(tuple(heads)))
        return
    raise CannotUnify("segments that are no multiples of the digits below them")


def _freeze(term: Term) -> None:
    """An index counts along these atoms: which segment, which of a few."""
    for one in leaves(term):
        one.frozen = True
