import pytest

from planish.ir.axes.terms import (
    CannotUnify,
    Leaf,
    Product,
    Sum,
    Term,
    leaves,
    resolved,
    size_of,
    split_product,
    split_sum,
    unify,
)
from planish.ir.flow.polynomial import Polynomial

B, T = Polynomial.symbol("B"), Polynomial.symbol("T")


def shape(term: Term) -> str:
    """Write a term with letters for its atoms, in the order in which they occur."""
    names: dict[Leaf, str] = {}

    def text(one: Term) -> str:
        one = resolved(one)
        if isinstance(one, Leaf):
            return names.setdefault(one, "abcdefgh"[len(names)])
        several = one.factors if isinstance(one, Product) else one.parts
        sign = "*" if isinstance(one, Product) else "+"
        return "(" + sign.join(map(text, several)) + ")"

    return text(term)


def test_a_leaf_becomes_what_it_meets() -> None:
    one, heads, width = Leaf(12), Leaf(3), Leaf(4)
    unify(one, Product((heads, width)))
    assert shape(one) == "(a*b)"
    assert list(leaves(one)) == [heads, width]


def test_products_split_each_other() -> None:
    one = Product((Leaf(6), Leaf(4)))
    other = Product((Leaf(3), Leaf(8)))
    unify(one, other)
    assert shape(one) == "(a*b*c)"
    assert [size_of(leaf) for leaf in leaves(one)] == [3, 2, 4]
    assert list(leaves(one)) == list(leaves(other))
    batch = Leaf(B * T)
    unify(batch, Product((Leaf(B), Leaf(T))))
    assert [size_of(leaf) for leaf in leaves(batch)] == [B, T]
    with pytest.raises(CannotUnify):
        unify(Product((Leaf(B), Leaf(T))), Product((Leaf(T), Leaf(B))))


def test_sums_are_cut_where_either_has_a_boundary() -> None:
    one, other = Sum((Leaf(3), Leaf(5))), Sum((Leaf(6), Leaf(2)))
    unify(one, other)
    assert [size_of(leaf) for leaf in leaves(one)] == [3, 3, 2]
    assert list(leaves(one)) == list(leaves(other))


def test_halves_of_a_rotary_embedding_move_in_pairs() -> None:
    width = Leaf(8)
    first, second = split_sum(width, 4)
    unify(width, Sum((second, first)))
    assert shape(width) == "(a+a)"


def test_fused_heads_share_their_width() -> None:
    fused = Leaf(40)
    unify(fused, Sum((Leaf(24), Leaf(8), Leaf(8))))
    heads, width = split_product(fused, 10)
    assert size_of(width) == 4
    assert [size_of(leaf) for leaf in leaves(heads)] == [6, 2, 2]


def test_a_digit_that_counts_equal_segments_is_frozen() -> None:
    gate_up = Sum((Leaf(6), Leaf(6)))
    which, inner = Leaf(2), Leaf(6)
    unify(Product((which, inner)), gate_up)
    assert which.frozen
    assert shape(gate_up) == "(a+a)"
    with pytest.raises(CannotUnify):
        split_sum(which, 1)


def test_a_cut_through_heads_is_refused() -> None:
    heads = Product((Leaf(3), Leaf(4)))
    first, second = split_sum(heads, 8)
    assert (size_of(first), size_of(second)) == (8, 4)
    with pytest.raises(CannotUnify, match="goes through digits"):
        split_sum(Product((Leaf(3), Leaf(4))), 6)


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(CannotUnify, match="sizes 8 and 6 differ"):
        unify(Leaf(8), Product((Leaf(2), Leaf(3))))
