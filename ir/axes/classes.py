"""The equational analysis: which dimensions are one axis, and what is done along each.

An interpreter of the same expressions as the isolation analysis, by unification: order does not
matter, and what a consumer demands flows back to the parameters. What meets is one axis, so this
says nothing about independence: after `x @ x.T` query and key positions are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planish.ir.axes.sites import Site
from planish.ir.axes.terms import (
    CannotUnify,
    Leaf,
    Product,
    Sum,
    Term,
    leaf,
    resolved,
    size_of,
    split_product,
    split_sum,
    unify,
)
from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.known import Counting
from planish.ir.flow.polynomial import Count, quotient
from planish.ir.flow.vocabulary import (
    Concat,
    Diagonal,
    Expression,
    Fill,
    Reads,
    Reshape,
    Slice,
    Value,
)

Terms = tuple[Term, ...]

WHOLE = {
    "contract": "contracted",
    "sum": "summed",
    "mean": "averaged",
    "extreme": "maximum",
    "statistic": "statistic",
    "softmax": "softmax",
    "norm": "layer norm",
    "layer norm": "layer norm",
    "rms norm": "rms norm",
    "gather": "looked up",
    "scatter": "written by index",
    "window": "neighbours",
    "scan": "running",
    "order": "sorted",
    "transform": "transformed",
}
"""What is done along a dimension that is read whole, or whose elements read each other."""

EACH = {
    "linear": "linear",
    "copy": "linear",
    "sum": "linear",
    "mean": "linear",
    "gather": "linear",
    "homogeneous": "homogeneous",
    "add": "add",
    "hadamard": "multiplied",
    "contract": "linear",
}
"""What is done along a dimension at whose every index the same happens; else: each by itself."""


class Classes:
    """The terms of every value, and the sites along them.

    Inputs and outputs named in `free` may have their indices moved; all others count.

    Attributes:
        terms: one a dimension, by value.
        sites: each with the term it is along, resolved only when all is known: a dimension is
            often split many nodes after the first thing was done along it.
        reasons: for dimensions that were not understood, why.
    """

    def __init__(self, flow: Flow, free: frozenset[str] = frozenset()) -> None:
        self.terms: dict[Value, Terms] = {}
        self.sites: list[tuple[Term, Site]] = []
        self.reasons: list[tuple[Node, str]] = []
        self._constant: set[Value] = set(flow.stored)
        self._node = Node("", "", (), ())
        self._known = flow.known
        for value in flow.inputs:
            self.terms[value] = tuple(leaf(size) for size in value.shape)
            if value.name not in free:
                self._pin(self.terms[value], Site("input", value.name, "input"))
        for value in flow.stored:
            self.terms[value] = tuple(leaf(size) for size in value.shape)
        for node in flow.nodes:
            self._read(node)
        for name, value in flow.outputs.items():
            if name in free:
                continue
            self._pin(self.terms[value], Site("output", name, "output"))
        for state in flow.states:
            self._pin(self.terms[state.after], Site("state", state.name, "state"))
            self._pin(self.terms[state.before], Site("state", state.name, "state"))

    def _read(self, node: Node) -> None:
        self._node = node
        for output, expression in zip(node.outputs, node.expressions, strict=True):
            sizes = output.shape
            try:
                terms = self.of(expression)
                found = tuple(map(size_of, terms))
                if found != tuple(sizes):
                    raise CannotUnify(f"{found} where {tuple(sizes)} was expected")
            except CannotUnify as problem:
                self.reasons.append((node, str(problem)))
                terms = tuple(leaf(size) for size in sizes)
                self._pin(terms, self._site("opaque"))
                for operand in _operands(expression):
                    self._pin(self.terms.get(operand, ()), self._site("opaque"))
            self.terms[output] = terms
            if _operands(expression) and all(
                one in self._constant for one in _operands(expression)
            ):
                self._constant.add(output)
            if isinstance(self._known.get(output), Counting):
                self._pin(terms, self._site("counted"))

    def _site(self, kind: str) -> Site:
        return Site(kind, self._node.name, self._node.operator, self._node.where)

    def _pin(self, terms: Iterable[Term], site: Site) -> None:
        self.sites += [(term, site) for term in terms]

    def _done(self, term: Term, kind: str) -> None:
        self.sites.append((term, self._site(kind)))

    def of(self, expression: Expression) -> Terms:
        """The terms of an expression's dimensions.

        Raises:
            CannotUnify: if dimensions that are one have no common form.
        """
        match expression:
            case Value():
                terms = self.terms[expression]
            case Reads():
                terms = self._reads(expression)
            case Reshape(value=value, shape=shape):
                terms = reshaped(self.of(value), shape)
            case Slice():
                terms = self._slice(expression)
            case Concat(operands=operands, dim=dim):
                terms = self._concat([self.of(one) for one in operands], dim)
            case Diagonal(value=value, first=first, second=second):
                inner = self.of(value)
                unify(inner[first], inner[second])
                rest = (one for dim, one in enumerate(inner) if dim not in (first, second))
                terms = (*rest, inner[first])
            case Fill(shape=shape):
                terms = tuple(leaf(size) for size in shape)
            case _:
                raise CannotUnify(f"{type(expression).__name__.lower()} is not followed")
        return terms

    def _reads(self, reads: Reads) -> Terms:
        along: list[list[tuple[Term, bool]]] = [[] for _ in reads.shape]
        whole: dict[str, list[tuple[Term, bool]]] = {}
        spread: list[int] = [0] * len(reads.shape)
        for operand in reads.operands:
            constant = all(one in self._constant for one in _operands(operand.value))
            terms = self.of(operand.value)
            for term, tag, size in zip(terms, operand.tags, operand.value.shape, strict=True):
                if isinstance(tag, str):
                    if size != 1:
                        whole.setdefault(tag, []).append((term, constant))
                elif size == reads.shape[tag]:
                    along[tag].append((term, constant))
                elif size == 1:
                    spread[tag] += 1
                else:
                    raise CannotUnify(f"sizes {size} and {reads.shape[tag]} differ")
            for dim in range(len(reads.shape)):
                spread[dim] += dim not in operand.tags
        folded = all(one in self._constant for one in _operands(reads))
        for group in whole.values():
            self._together(group, reads.kind, folded)
        return tuple(
            self._one(dim, size, along[dim], spread[dim], reads)
            for dim, size in enumerate(reads.shape)
        )

    def _together(self, group: Sequence[tuple[Term, bool]], kind: str, folded: bool) -> None:
        """Dimensions that are read whole, together."""
        first, constant = group[0]
        for other, _ in group[1:]:
            unify(first, other)
        if folded and kind == "contract":
            return  # of parameters alone: what becomes of them is computed once
        what = WHOLE.get(kind, "statistic")
        if kind == "contract" and len(group) == 1:
            # A filter's own places, which no dimension of the input matches; or a plain sum.
            what = "neighbours" if constant else "summed"
        elif kind == "contract" and any(weight for _, weight in group):
            what = "contracted with a weight"
        self._done(first, what)

    def _one(
        self,
        dim: int,
        size: Count,
        along: Sequence[tuple[Term, bool]],
        spread: int,
        reads: Reads,
    ) -> Term:
        """One dimension of the result."""
        if not along:
            fresh = leaf(size)
            if reads.operands:
                self._done(fresh, "repeated")
            return fresh
        first, _ = along[0]
        for other, _ in along[1:]:
            unify(first, other)
        if all(constant for _, constant in along) and reads.kind != "contract":
            return first
        if dim in reads.mixed:
            self._done(first, WHOLE.get(reads.kind, "statistic"))
            if any(constant for _, constant in along[1:]):
                self._done(first, "scaled by a parameter")
            return first
        self._done(first, _each(reads.kind, along, spread))
        return first

    def _slice(self, part: Slice) -> Terms:
        terms = list(self.of(part.value))
        old = part.value.shape[part.dim]
        if part.size == old and part.start == 0 and part.step == 1:
            return tuple(terms)
        whole = terms[part.dim]
        known = isinstance(part.start, int) and isinstance(part.size, int)
        if not known or part.start is None or part.step != 1 or part.size == 1:
            # One index picked by its number, or every second one, or as many as there are
            # positions: each place counts.
            self._done(whole, "picked")
            terms[part.dim] = leaf(part.size)
            return tuple(terms)
        _, rest = split_sum(whole, part.start)
        terms[part.dim], _ = split_sum(rest, part.size)
        return tuple(terms)

    def _concat(self, several: Sequence[Terms], dim: int) -> Terms:
        first = list(several[0])
        for other in several[1:]:
            for place, (one, two) in enumerate(zip(first, other, strict=True)):
                if place != dim:
                    unify(one, two)
        parts = tuple(terms[dim] for terms in several)
        first[dim] = Sum(tuple(_counted(part) for part in parts))
        return tuple(first)


def _counted(part: Term) -> Term:
    """A segment of one index takes a place too, though alone it carries nothing."""
    plain = resolved(part)
    return Leaf(1) if isinstance(plain, Product) and not plain.factors else part


def _each(kind: str, along: Sequence[tuple[Term, bool]], spread: int) -> str:
    """What is done at every index alike."""
    if kind == "contract":
        if len(along) > 1:
            return "batched"
        return "produced by a weight" if along[0][1] else "linear"
    if kind == "hadamard" and len(along) == 1:
        return "linear"
    if kind == "hadamard" and any(constant for _, constant in along):
        return "scaled by a parameter"
    if kind == "add" and spread:
        return "shifted"
    return EACH.get(kind, "each by itself")


def reshaped(terms: Terms, shape: Sequence[Count]) -> Terms:
    """The terms after a row-major reshape: digits are joined and split.

    Raises:
        CannotUnify: if the sizes do not fit.
    """
    pending: list[Term] = []
    for term in map(resolved, terms):
        pending += term.factors if isinstance(term, Product) else [term]
    result: list[Term] = []
    for size in shape:
        left: Count = size
        taken: list[Term] = []
        while left != 1:
            if not pending:
                raise CannotUnify("a reshape to more elements")
            head = pending.pop(0)
            rest = quotient(left, size_of(head))
            if rest is not None:
                taken.append(head)
                left = rest
                continue
            outer, inner = split_product(head, left)
            taken.append(outer)
            pending.insert(0, inner)
            left = 1
        result.append(resolved(Product(tuple(taken))))
    return tuple(result)


def _operands(expression: Expression) -> list[Value]:
    """The values that an expression is made of."""
    if isinstance(expression, Value):
        return [expression]
    inner: list[Expression] = []
    if isinstance(expression, Reads):
        inner = [operand.value for operand in expression.operands]
    else:
        one = getattr(expression, "value", None)
        inner = [*getattr(expression, "operands", ()), *([one] if one is not None else [])]
    return [value for one in inner for value in _operands(one)]
