"""How much each channel, head or expert counts, by what is asked of weights, inputs or gradients.

Sources: magnitudes of coupled weights, Fang et al., "DepGraph" (2023); activations, Muralidharan et
al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron, 2024), section 2.2;
weights times inputs, Sun et al., "A Simple and Effective Pruning Approach for LLMs" (Wanda, 2023);
gradients, Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019), with the
gradients of `planish.passes.fisher`; scales of batch norms, Liu et al., "Network Slimming" (2017).
What costs least once the rest makes up for it is in `planish.passes.elimination`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from planish.ir.axes.axes import Axes
from planish.ir.axes.places import gathered, places
from planish.ir.axes.terms import Term, leaves
from planish.ir.program import Program, Sample
from planish.passes.contract import NotApplicable
from planish.passes.elimination import Problem, eliminated
from planish.passes.fisher import observe, requests_of
from planish.passes.groups import KINDS, Group, sizes
from planish.passes.readers import reader_of
from planish.passes.sequential import Visit, second_moments, walk

Importance = Literal[
    "magnitude", "activation", "wanda", "reconstruction", "taylor", "batch_norm", "random"
]

LEARNS: frozenset[Importance] = frozenset({"activation", "wanda", "reconstruction", "taylor"})
"""What needs samples."""

REQUESTS = 64
"""Requests whose gradients are taken at most: each costs three runs, and tells of all its rows."""

aten = torch.ops.aten

_NORMS: dict[Any, int] = {
    aten.batch_norm.default: 1,
    aten._native_batch_norm_legit_no_training.default: 1,
}
"""Where batch norms are given their scale."""

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """What is to be known of some groups.

    Attributes:
        program: whose they are.
        axes: of the program.
        groups: to be scored.
        remove: how many indices of each are about to be removed, at most.
        samples: to learn from.
        seed: of random scores.
        called: the name of the pass, for messages.
        tell: told how far it is.
    """

    program: Program
    axes: Axes
    groups: Sequence[Group]
    remove: Mapping[Group, int]
    samples: Sequence[Sample]
    seed: int
    called: str
    tell: Tell


def scores(question: Question, how: Importance) -> dict[Group, Tensor]:
    """How much each index of each group counts, float64 [n], at least 0.

    Raises:
        NotApplicable: if this way of asking says nothing of some group.
    """
    experts = [group for group in question.groups if group.kind == "experts"]
    if experts and how not in ("magnitude", "activation", "random"):
        raise NotApplicable(
            f"{question.called}: {how} says nothing of {experts[0]}, {KINDS['experts']}, which "
            "nothing reads by a weight; importance may be activation, magnitude or random."
        )
    found = _WAYS[how](question)
    for group, one in found.items():
        if not bool((one >= 0).all()):
            raise NotApplicable(
                f"{question.called}: {how} of {group} is not finite on the samples; look at them, "
                "or take importance: magnitude."
            )
    return found


def _magnitude(question: Question) -> dict[Group, Tensor]:
    return {group: sizes(question.program, question.axes, group) for group in question.groups}


def _random(question: Question) -> dict[Group, Tensor]:
    chance = torch.Generator().manual_seed(question.seed)
    return {
        group: torch.rand(group.size, generator=chance, dtype=torch.float64)
        for group in question.groups
    }


def _batch_norm(question: Question) -> dict[Group, Tensor]:
    """The squares of the scales of the batch norms along each group."""
    scales = {
        str(node.args[place].target)  # type: ignore[union-attr]
        for target, place in _NORMS.items()
        for node in question.program.nodes(target)
        if node.args[place] is not None
    }
    found = {}
    for group in question.groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        members = [one for one in group.axis.members if one.tensor in scales]
        if not members:
            raise NotApplicable(
                f"{question.called}: {group} has no batch norm along it, so batch_norm says "
                "nothing of it; name it under ignore, or take another importance. Norms that were "
                "folded are gone: prune before fuse_conv_bn."
            )
        for member in members:
            term = question.axes.terms[member.tensor][member.dim]
            squares = question.program.tensors[member.tensor].double().square()
            total += gathered(squares, term, group.axis.leaf)
        found[group] = total
    return found


def _activation(question: Question) -> dict[Group, Tensor]:
    """The mean square of what readers read; of experts, how often each is chosen."""
    found = _visited(question, lambda group, visit: _squares(question, group, visit))
    return found | _chosen(question)


def _wanda(question: Question) -> dict[Group, Tensor]:
    """What each index adds to the squares of what readers give, were it alone."""
    return _visited(question, lambda group, visit: _products(question, group, visit))


def _reconstruction(question: Question) -> dict[Group, Tensor]:
    """By elimination, where each reader's least squares can be set up; else by `_products`."""
    problems: dict[Group, list[Problem]] = {group: [] for group in question.groups}
    plain = _visited(question, lambda group, visit: _posed(question, group, visit, problems))
    return {
        group: eliminated(problems[group], group.size, question.remove[group])
        if len(problems[group]) == len(_sources(group))
        else plain[group]
        for group in question.groups
    }


def _posed(
    question: Question, group: Group, visit: Visit, problems: Mapping[Group, list[Problem]]
) -> Tensor:
    readers = [reader_of(node) for node in visit.layers if node in group.readers]
    known = [reader for reader in readers if reader is not None]
    term = _along(question, visit, group)
    if known and len(known) == len(readers) and term is not None:
        index = places(term[1], group.axis.leaf).repeat_interleave(known[0].kernel())
        moments = torch.zeros(len(index), len(index))
        for value in visit.inputs:
            moments += second_moments([known[0].rows(value)])[0]
        matrix = torch.cat([one.matrix(question.program.tensors).float() for one in known])
        problem = Problem.of(matrix, moments, index)
        if problem is not None:
            problems[group].append(problem)
    return _products(question, group, visit)


def _taylor(question: Question) -> dict[Group, Tensor]:
    """The mean square of what the answers' log-likelihood loses to first order, by row."""
    watched: dict[str, _Product] = {}
    of: dict[Group, list[_Product]] = {}
    for group in question.groups:
        for source in _sources(group):
            found = _dim(question, source, group)
            if found is not None:
                index = places(found[1], group.axis.leaf)
                product = _Product(found[0], index, group.size, watched.get(source.name))
                watched[source.name] = product
                of.setdefault(group, []).append(product)
    requests = [one for sample in question.samples for one in requests_of(question.program, sample)]
    step = max(1, len(requests) // REQUESTS)
    observe(question.program, watched, requests[::step], question.tell)
    return {
        group: sum(
            (one.total for one in of.get(group, [])), torch.zeros(group.size, dtype=torch.float64)
        )
        for group in question.groups
    }


class _Product:
    """Σ (x g)² of the indices of one group at one value x with the gradient g, over rows."""

    def __init__(self, dim: int, index: Tensor, size: int, other: _Product | None) -> None:
        self.total = torch.zeros(size, dtype=torch.float64)
        self._dim, self._index, self._other = dim, index, other

    def watch(self, output: Tensor) -> None:
        """Begin with a request."""
        if self._other is not None:
            self._other.watch(output)
        elif not output.requires_grad:
            output.requires_grad_()
        value, index = output.detach(), self._index

        def add(gradient: Tensor) -> None:
            rows = (gradient * value).double().movedim(self._dim, -1)
            if self._dim == 1 and rows.dim() > 3:  # a filter's channel: of a whole picture
                rows = rows.flatten(1, -2).sum(1)
            kept = index >= 0
            summed = rows.new_zeros(*rows.shape[:-1], len(self.total))
            summed.index_add_(-1, index[kept], rows[..., kept])
            self.total += summed.flatten(0, -2).square().sum(0)

        output.register_hook(add)


def _visited(question: Question, ask: Callable[[Group, Visit], Tensor]) -> dict[Group, Tensor]:
    """Sums of what is found of each group wherever something reads it, on one walk."""
    found = {
        group: torch.zeros(group.size, dtype=torch.float64)
        for group in question.groups
        if group.kind != "experts"
    }
    by_reader: dict[fx.Node, list[Group]] = {}
    for group in found:
        for node in group.readers:
            by_reader.setdefault(node, []).append(group)
    if not by_reader:
        return found
    for visit in walk(question.program, question.samples, [*by_reader], tell=question.tell):
        here = dict.fromkeys(group for node in visit.layers for group in by_reader[node])
        for group in here:
            found[group] += ask(group, visit)
    return found


def _squares(question: Question, group: Group, visit: Visit) -> Tensor:
    found = _along(question, visit, group)
    if found is None:
        return torch.zeros(group.size, dtype=torch.float64)
    return gathered(_by_place(visit, found[0]), found[1], group.axis.leaf)


def _products(question: Question, group: Group, visit: Visit) -> Tensor:
    found = _along(question, visit, group)
    total = torch.zeros(group.size, dtype=torch.float64)
    if found is None:
        return total
    squares = _by_place(visit, found[0])
    leaf = group.axis.leaf
    for node in visit.layers:
        if node not in group.readers:
            continue
        weights = _weight_squares(question, node, group)
        if weights is None:
            continue
        if len(weights) == len(squares):
            total += gathered(weights * squares, found[1], leaf)
        else:  # a picture that was flattened, or groups of filters
            total += gathered(squares, found[1], leaf) * weights.mean()
    return total


def _weight_squares(question: Question, node: fx.Node, group: Group) -> Tensor | None:
    """Of a weight, the sums of squares at each place of the dimension that is summed over."""
    for read in node.all_input_nodes:
        stored = read
        while stored.op == "call_function" and len(stored.all_input_nodes) == 1:
            (stored,) = stored.all_input_nodes
        if stored.op != "get_attr":
            continue
        for member in group.axis.members:
            tensor = question.program.tensors[member.tensor]
            if member.tensor == str(stored.target) and tensor.dim() > 1:
                return tensor.double().square().movedim(member.dim, 0).flatten(1).sum(1)
    return None


def _by_place(visit: Visit, dim: int) -> Tensor:
    """The mean square at each place of one dimension of what was read, float64."""
    total = torch.zeros(visit.inputs[0].shape[dim], dtype=torch.float64)
    count = 0
    for value in visit.inputs:
        rows = value.movedim(dim, -1).flatten(0, -2)
        total += rows.square().sum(0, dtype=torch.float64)
        count += len(rows)
    return total / max(count, 1)


def _chosen(question: Question) -> dict[Group, Tensor]:
    """How often each expert is chosen."""
    nodes = {node.name: node for node in question.program.graph.nodes}
    at: dict[fx.Node, Group] = {}
    for group in question.groups:
        for site in group.axis.sites:
            if site.kind == "chosen" and nodes[site.node].target is aten.topk.default:
                at[nodes[site.node]] = group
    found = {group: torch.zeros(group.size, dtype=torch.float64) for group in at.values()}
    if at:
        for visit in walk(question.program, question.samples, [*at], tell=question.tell):
            for node in visit.layers:
                size = found[at[node]]
                for value in visit.inputs:
                    indices = value.topk(int(node.args[1]), -1).indices.flatten()  # type: ignore[arg-type]
                    size += torch.bincount(indices, minlength=len(size))
    return found


def _sources(group: Group) -> list[fx.Node]:
    """What the readers of a group read, each once."""
    sources: Any = dict.fromkeys(node.args[0] for node in group.readers)
    return [*sources]


def _along(question: Question, visit: Visit, group: Group) -> tuple[int, Term] | None:
    source: Any = visit.layers[0].args[0]
    return _dim(question, source, group)


def _dim(question: Question, source: fx.Node, group: Group) -> tuple[int, Term] | None:
    """The dimension of a value along which a group lies, and its term."""
    name = str(source.target) if source.op == "placeholder" else source.name
    for dim, term in enumerate(question.axes.values.get(name, ())):
        if any(leaf is group.axis.leaf for leaf in leaves(term)):
            return dim, term
    return None


_WAYS: dict[Importance, Callable[[Question], dict[Group, Tensor]]] = {
    "magnitude": _magnitude,
    "activation": _activation,
    "wanda": _wanda,
    "reconstruction": _reconstruction,
    "taylor": _taylor,
    "batch_norm": _batch_norm,
    "random": _random,
}
