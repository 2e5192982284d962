"""The equational analysis: which dimensions are one axis, and what is done along each.

An interpreter of the same expressions as the isolation analysis, by unification: order does not
matter, and what a consumer demands flows back to the parameters. What meets is one axis, so this
says nothing about independence: after `x @ x.T` query and key positions are one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

from planish.ir.axes.expressions import is_segment, is_whole, values_of
from planish.ir.axes.kinds import MIXED, WHOLE, by_place, each
from planish.ir.axes.names import Blank, Name, Names
from planish.ir.axes.sites import Site
from planish.ir.axes.terms import (
    UNIT,
    CannotUnify,
    Leaf,
    Product,
    Sum,
    Term,
    leaf,
    leaves,
    resolved,
    size_of,
    split_factors,
    split_sum,
    unify,
    unit_as_leaf,
)
from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.known import Counting
from planish.ir.flow.polynomial import Count
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


class Classes:
    """The terms of every value, and the sites along them.

    The places of inputs and outputs count, except of states: inputs that only outputs of an earlier
    call are fed to, which therefore are one axis.

    Attributes:
        flow: what was analysed.
        carried: each state as it comes in and as it goes out.
        inputs: the values that each node's expressions are made of.
        readers: how often each value is read.
        terms: one a dimension, by value.
        parts: the same, by the expressions that values are made of.
        sites: each with the term it is along, resolved only when all is known: a dimension is
            often split many nodes after the first thing was done along it.
        reasons: for dimensions that were not understood, why.
        uses: of what reads nothing, such as `arange`, the terms that it has for each reader. Two
            readers of one constant need not read it along one axis.
    """

    def __init__(self, flow: Flow, states: Mapping[str, str] | None = None) -> None:
        given = {value.name: value for value in flow.inputs}
        states = states or {}
        self.flow = flow
        self.carried = [(given[past], flow.outputs[now]) for past, now in states.items()]
        self.terms: dict[Value, Terms] = {}
        self.parts: dict[Expression, Terms] = {}
        self.sites: list[tuple[Term, Site]] = []
        self.reasons: list[tuple[Node, str]] = []
        self.uses: dict[tuple[Value, str], Terms] = {}
        self._fills: dict[Value, Fill] = {}
        self._constant: set[Value] = set(flow.stored)
        self._atoms: dict[Term, frozenset[Leaf]] = {}
        self._node = Node("", "", (), ())
        self._known = flow.known
        self.names = Names(self.parts, self._done, self._site)
        self.inputs = {
            expression: values_of(expression)
            for node in flow.nodes
            for expression in (*node.expressions, *node.controls)
        }
        self.readers = Counter(value for several in self.inputs.values() for value in several)
        self.readers += Counter(flow.outputs.values())
        for value in flow.inputs:
            self.terms[value] = tuple(leaf(size) for size in value.shape)
            if value.name not in states:
                self._pin(self.terms[value], Site("input", value.name, "input"))
        for value in flow.stored:
            self.terms[value] = tuple(leaf(size) for size in value.shape)
        for node in flow.nodes:
            self._read(node)
        for name, value in flow.outputs.items():
            self._node = Node(name, "output", (), ())
            self.names.use(value, "output")
            if name not in states.values():
                self._pin(self.terms[value], self._site("output"))
        for before, after in self.carried:
            self._carry(self.terms[before], self.terms[after])
        for state in flow.states:
            self._pin(self.terms[state.after], Site("state", state.name, "state"))
            self._pin(self.terms[state.before], Site("state", state.name, "state"))
            self._node = Node(state.name, "state", (), ())
            self.names.use(state.after, "state")
        kept = [term for value in flow.stored for term in self.terms[value]]
        self.sites += self.names.rows.settled(self.sites, kept)

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
                for operand in values_of(expression):
                    self._pin(self.terms.get(operand, ()), self._site("opaque"))
                    self.names.use(operand, "opaque")
            self.terms[output] = self.parts[output] = terms
            if values_of(expression) and all(
                one in self._constant for one in values_of(expression)
            ):
                self._constant.add(output)
            self.names.mean(output, self.names.of(expression))
            if isinstance(expression, Fill):
                self._fills[output] = expression
        for control in node.controls:
            self.names.use(control)

    def _made(self, value: Value, fill: Fill) -> Terms:
        """What reads nothing, for its reader: `arange` names the places of its own dimension."""
        use = (value, self._node.name)
        if use in self.uses:
            return self.uses[use]
        terms = self.uses[use] = tuple(map(leaf, fill.shape))
        known = self._known.get(value)
        if fill.content == "uninitialized":
            self.names.mean(value, Blank())
        elif isinstance(known, Counting) and (known.base, known.steps) == (0, (1,)):
            self.names.mean(value, Name(terms[0]))
        elif fill.content != "constant":
            self._pin(terms, self._site("counted"))
        return terms

    def atoms(self, term: Term) -> frozenset[Leaf]:
        """The atoms of a term, once all is known."""
        if term not in self._atoms:
            self._atoms[term] = frozenset(leaves(term))
        return self._atoms[term]

    def _carry(self, before: Terms, after: Terms) -> None:
        """A state comes back as it went out; along positions it may have grown."""
        for one, other in zip(before, after, strict=True):
            if size_of(one) == size_of(other):
                unify(one, other)

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
            case Value() if expression in self._fills:
                terms = self._made(expression, self._fills[expression])
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
        self.parts[expression] = terms
        if not isinstance(expression, Value):
            self.names.read(expression)
        return terms

    def _reads(self, reads: Reads) -> Terms:
        for operand in reads.operands:
            self.of(operand.value)
        made = self.names.made(reads)
        return made if made is not None else self._read_along(reads, self.names.picks(reads))

    def _read_along(self, reads: Reads, picked: Container[str]) -> Terms:
        """The terms of what a result lies along; names pick one place each along some tags."""
        along: list[list[tuple[Term, bool]]] = [[] for _ in reads.shape]
        whole: dict[str, list[tuple[Term, bool]]] = {}
        spread: list[int] = [0] * len(reads.shape)
        unclear: set[int] = set()
        for operand in reads.operands:
            constant = all(one in self._constant for one in values_of(operand.value))
            terms = self.parts[operand.value]
            for term, tag, size in zip(terms, operand.tags, operand.value.shape, strict=True):
                if isinstance(tag, str):
                    if size != 1:
                        whole.setdefault(tag, []).append((term, constant))
                elif size == reads.shape[tag]:
                    along[tag].append((term, constant))
                elif size == 1:
                    spread[tag] += 1
                else:  # one of them is 1, or they are equal, in a way that is not known
                    self._done(term, "opaque")
                    unclear.add(tag)
            for dim in range(len(reads.shape)):
                spread[dim] += dim not in operand.tags
        folded = all(one in self._constant for one in values_of(reads))
        for tag, group in whole.items():
            self._together(group, "named" if tag in picked else reads.kind, folded)
        result = tuple(
            self._one(dim, size, along[dim], spread[dim], reads)
            for dim, size in enumerate(reads.shape)
        )
        self._pin((result[dim] for dim in unclear), self._site("opaque"))
        self._pin((result[dim] for dim in by_place(reads)), self._site("counted"))
        return result

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
                tags = [tag for operand in reads.operands for tag in operand.tags]
                made = dim not in tags and any(isinstance(tag, str) for tag in tags)
                # A convolution's places lie along no dimension of what it reads.
                self._done(fresh, "neighbours" if made else "repeated")
            return fresh
        first, _ = along[0]
        for other, _ in along[1:]:
            unify(first, other)
        if all(constant for _, constant in along) and reads.kind != "contract":
            return first
        if dim in reads.mixed:
            self._done(first, MIXED.get(reads.kind, "statistic"))
            return first
        operand = reads.operands[0]
        numerator = (dim, size) in zip(operand.tags, operand.value.shape, strict=True)
        self._done(first, each(reads.kind, along, spread, numerator))
        return first

    def _slice(self, part: Slice) -> Terms:
        terms = list(self.of(part.value))
        whole = terms[part.dim]
        if is_whole(part):
            return tuple(terms)
        if part.start is None or not is_segment(part) or any(one.frozen for one in leaves(whole)):
            # Every second one, or as many as there are positions: each place counts.
            self._done(whole, "picked")
            terms[part.dim] = leaf(part.size)
            return tuple(terms)
        _, rest = split_sum(whole, part.start)
        segment, _ = split_sum(rest, part.size)
        terms[part.dim] = UNIT if part.size == 1 else segment
        return tuple(terms)

    def _concat(self, several: Sequence[Terms], dim: int) -> Terms:
        first = list(several[0])
        for other in several[1:]:
            for place, (one, two) in enumerate(zip(first, other, strict=True)):
                if place != dim:
                    unify(one, two)
        parts = tuple(terms[dim] for terms in several)
        first[dim] = Sum(tuple(unit_as_leaf(resolved(part)) for part in parts))
        return tuple(first)


def reshaped(terms: Terms, shape: Sequence[Count]) -> Terms:
    """The terms after a row-major reshape: digits are joined and split.

    Raises:
        CannotUnify: if the sizes do not fit.
    """
    rest = resolved(Product(tuple(terms)))
    result: list[Term] = []
    for size in shape:
        outer, rest = split_factors(rest, size)
        result.append(outer)
    return tuple(result)
